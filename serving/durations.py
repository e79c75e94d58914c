"""How long each item lasts, from a CSV file: the log knows playing times, but not of how much."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from serving.errors import ConfigurationError

COLUMNS = ("item_id", "duration_s")


def load_durations(path: Path) -> dict[str, float]:
    """item id -> seconds, above 0. Raises ConfigurationError naming the column, or the line and what is wrong there."""
    found: dict[str, float] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            for column in COLUMNS:
                if column not in (reader.fieldnames or ()):
                    raise ConfigurationError(f"{path}: missing column {column!r}")
            for row in reader:
                found[_item(row["item_id"], path, reader.line_num)] = _seconds(row["duration_s"], path, reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    return found


def _item(text: str | None, path: Path, line: int) -> str:
    if not (text or "").strip():
        raise ConfigurationError(f"{path}, line {line}: item_id is empty")
    return str(text).strip()


def _seconds(text: str | None, path: Path, line: int) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigurationError(f"{path}, line {line}: duration_s {text!r} is not a number of seconds above 0")
    return seconds
