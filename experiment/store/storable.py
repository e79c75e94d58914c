"""What no database takes is replaced: one bad record must not hold up all that come after it in a spool."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from experiment.events import Record, Served

_INT32 = 2**31
_TEXTS = ("event_id", "request_id", "user_id", "item_id")


def storable(record: Record) -> Record:
    """The record itself, or a copy that every database takes.

    NUL and broken Unicode become replacement characters, a position beyond 32 bits None, a value that is not finite 0.
    """
    if isinstance(record, Served):
        user = _text(record.user_id)
        return record if user == record.user_id else replace(record, user_id=user)
    changed: dict[str, Any] = {}
    for name in _TEXTS:
        text = getattr(record, name)
        if not text.isascii() or "\0" in text:
            changed[name] = _text(text)
    if record.position is not None and not -_INT32 <= record.position < _INT32:
        changed["position"] = None
    if not math.isfinite(record.value):
        changed["value"] = 0.0
    return replace(record, **changed) if changed else record


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
