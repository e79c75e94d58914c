"""History and slate of a served request as two columns of compact JSON, NULL where none was logged."""

from __future__ import annotations

import json

from experiment.events import Served, Slate

NAMES = ("history", "slate")


def to_columns(record: Served) -> dict[str, str | None]:
    """{"history": '["50","181"]', "slate": '[["100",-4.25],["7",null]]'}; a logged slate of a new user has `[]`."""
    if not record.slate:
        return dict.fromkeys(NAMES)
    return {"history": _compact(record.history), "slate": _compact(record.slate)}


def history_of(text: str | None) -> tuple[str, ...]:
    """Inverse of the column `history`; NULL is empty."""
    return () if text is None else tuple(json.loads(text))


def slate_of(text: str | None) -> Slate:
    """Inverse of the column `slate`; NULL is empty."""
    return () if text is None else tuple((item, score) for item, score in json.loads(text))


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
