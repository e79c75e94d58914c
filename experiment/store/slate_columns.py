"""What a served request keeps for post-training as columns of compact JSON, NULL where it was not logged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from experiment.events import LOGGED, Served


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


def _read(made: Callable[[Any], tuple[Any, ...]], text: str | None) -> tuple[Any, ...]:
    return () if text is None else made(json.loads(text))


READ: Mapping[str, Callable[[str | None], tuple[Any, ...]]] = {
    name: partial(_read, made) for name, made in LOGGED.items()
}
"""The columns, each with the inverse of `to_columns`; NULL is empty."""


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
