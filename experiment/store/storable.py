"""What no database takes is replaced: one bad record must not hold up all that come after it in a spool."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from experiment.events import Record, Served, Slate

_INT32 = 2**31
_TEXTS = ("event_id", "request_id", "user_id", "item_id")


def storable(record: Record) -> Record:
    """The record itself, or a copy that every database takes.

    NUL and broken Unicode become replacement characters, a position beyond 32 bits None, a value that is not finite 0,
    a slate's score that is not finite None.
    """
    if isinstance(record, Served):
        return _storable_served(record)
    changed: dict[str, Any] = {}
    for name in _TEXTS:
        text = getattr(record, name)
        if not _is_plain(text):
            changed[name] = _text(text)
    if record.position is not None and not -_INT32 <= record.position < _INT32:
        changed["position"] = None
    if not math.isfinite(record.value):
        changed["value"] = 0.0
    return replace(record, **changed) if changed else record


def _storable_served(record: Served) -> Served:
    changed: dict[str, Any] = {}
    if not _is_plain(record.user_id):
        changed["user_id"] = _text(record.user_id)
    for name in ("history", "liked"):
        items = getattr(record, name)
        if not _is_plain("".join(items)):
            changed[name] = tuple(map(_text, items))
    if not _is_plain("".join(text for pair in record.profile for text in pair)):
        changed["profile"] = tuple((_text(name), _text(value)) for name, value in record.profile)
    finite = all(score is None or math.isfinite(score) for _, score in record.slate)
    if not finite or not _is_plain("".join(item for item, _ in record.slate)):
        changed["slate"] = _slate(record.slate)
    return replace(record, **changed) if changed else record


def _slate(slate: Slate) -> Slate:
    return tuple((_text(item), score if score is not None and math.isfinite(score) else None) for item, score in slate)


def _is_plain(text: str) -> bool:
    return text.isascii() and "\0" not in text


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
