"""What a served request keeps for post-training as columns of compact JSON, NULL where it was not logged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from experiment.events import Profile, Served, Slate


def to_columns(record: Served) -> dict[str, str | None]:
    """{"history": '["50","181"]', "slate": '[["100",-4.25],["7",null]]', "liked": None, "profile": '[["age","25"]]'}.

    A logged slate of a new user has the history `[]`; who likes nothing, or has no profile, has NULL there.
    """
    if not record.slate:
        return dict.fromkeys(READ)
    return {
        "history": _compact(record.history),
        "slate": _compact(record.slate),
        "liked": _compact(record.liked) if record.liked else None,
        "profile": _compact(record.profile) if record.profile else None,
    }


def items_of(text: str | None) -> tuple[str, ...]:
    """Inverse of the columns `history` and `liked`; NULL is empty."""
    return () if text is None else tuple(json.loads(text))


def slate_of(text: str | None) -> Slate:
    """Inverse of the column `slate`; NULL is empty."""
    return () if text is None else tuple((item, score) for item, score in json.loads(text))


def profile_of(text: str | None) -> Profile:
    """Inverse of the column `profile`; NULL is empty."""
    return () if text is None else tuple((name, value) for name, value in json.loads(text))


READ: Mapping[str, Callable[[str | None], Any]] = {
    "history": items_of, "slate": slate_of, "liked": items_of, "profile": profile_of,
}  # fmt: skip
"""The columns, each with what reads it."""


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
