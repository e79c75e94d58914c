"""Interactions of users with items, read from a user's own CSV or Parquet file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import DataError

REQUIRED = ("user_id", "item_id", "timestamp")

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Who met what and when, sorted by time; rows of one instant keep the order of the file.

    user, item [n]: indices into `users` and `items`; timestamp [n]: seconds since 1970; value [n]: a rating, a
    watch time or whatever the file holds, NaN where it holds none. titles and genres are per item, "" and ()
    where unknown. profiles is per user, feature -> value, or empty where nothing is known of anybody.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: IntArray
    item: IntArray
    timestamp: FloatArray
    value: FloatArray
    titles: tuple[str, ...]
    genres: tuple[tuple[str, ...], ...]
    profiles: tuple[Mapping[str, str], ...] = ()

    def __len__(self) -> int:
        return int(self.user.shape[0])


@dataclass(frozen=True, slots=True)
class Row:
    """One interaction as read, with the place it was read from for error messages."""

    user_id: str
    item_id: str
    timestamp: float
    value: float


def from_rows(
    rows: Iterable[Row],
    titles: Mapping[str, str] | None = None,
    genres: Mapping[str, Sequence[str]] | None = None,
    profiles: Mapping[str, Mapping[str, str]] | None = None,
) -> Interactions:
    """Index and sort rows; items known only by title join the catalogue too. Raises DataError without rows.

    titles and genres by item, profiles by user; users known only by profile do not join.
    """
    titles, genres = titles or {}, genres or {}
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns: tuple[list[int], list[int], list[float], list[float]] = ([], [], [], [])
    for row in rows:
        columns[0].append(users.setdefault(row.user_id, len(users)))
        columns[1].append(items.setdefault(row.item_id, len(items)))
        columns[2].append(row.timestamp)
        columns[3].append(row.value)
    if not columns[0]:
        raise DataError("no interactions: the file has a header but no rows")
    for known in titles:
        items.setdefault(known, len(items))
    timestamp = np.asarray(columns[2], dtype=np.float64)
    order = np.argsort(timestamp, kind="stable")
    return Interactions(
        users=tuple(users),
        items=tuple(items),
        user=np.asarray(columns[0], dtype=np.int64)[order],
        item=np.asarray(columns[1], dtype=np.int64)[order],
        timestamp=timestamp[order],
        value=np.asarray(columns[3], dtype=np.float64)[order],
        titles=tuple(titles.get(name, "") for name in items),
        genres=tuple(tuple(genres.get(name, ())) for name in items),
        profiles=tuple(profiles.get(name, {}) for name in users) if profiles else (),
    )


def load_interactions(path: Path | str) -> Interactions:
    """Read user_id, item_id, timestamp and, if there, value from a CSV or Parquet file.

    timestamp: seconds since 1970, or ISO 8601 (without an offset it is taken as UTC). Raises DataError naming the
    missing column, the empty file or the row that does not parse.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        rows = _parquet_rows(path)
    elif suffix in (".csv", ".tsv"):
        rows = _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    else:
        raise DataError(f"{path}: expected a .csv, .tsv, .parquet or .pq file")
    try:
        return from_rows(rows)
    except DataError as error:
        if str(error).startswith(str(path)):
            raise
        raise DataError(f"{path}: {error}") from error


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter=delimiter)
            _require_columns(path, [name.strip() for name in reader.fieldnames or ()])
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for raw in reader:
                yield parse_row(raw, f"{path}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    _require_columns(path, table.column_names)
    names = [name for name in (*REQUIRED, "value") if name in table.column_names]
    done = 0
    for batch in table.select(names).to_batches():
        for raw in batch.to_pylist():
            done += 1
            yield parse_row(raw, f"{path}, row {done}")


def _require_columns(path: Path, names: Sequence[str]) -> None:
    for column in REQUIRED:
        if column not in names:
            raise DataError(f"{path}: missing column {column!r}; found {', '.join(names) or 'none'}")


def parse_row(raw: Mapping[str, Any], where: str) -> Row:
    """One row of text or typed values; raises DataError with `where` and the field."""
    ids = []
    for field in ("user_id", "item_id"):
        value = raw.get(field)
        text = "" if value is None else str(value).strip()
        if not text:
            raise DataError(f"{where}: {field} is empty")
        ids.append(text)
    value = raw.get("value")
    rating = math.nan if value is None or value == "" else _number(value, "value", where)
    return Row(ids[0], ids[1], _timestamp(raw.get("timestamp"), where), rating)


def _number(value: Any, field: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {field} {value!r} is not a number") from error
    if not math.isfinite(number):
        raise DataError(f"{where}: {field} {value!r} is not finite")
    return number


def _timestamp(value: Any, where: str) -> float:
    if isinstance(value, str):
        try:
            return _number(value, "timestamp", where)
        except DataError as error:
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError:
                raise DataError(f"{where}: timestamp {value!r} is neither seconds nor ISO 8601") from error
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return aware.timestamp()
    return _number(value, "timestamp", where)
