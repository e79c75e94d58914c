"""Settings as they are stored, so that what was stored before a field existed is still known as what it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def stored_fields(settings: DataclassInstance, younger: Collection[str]) -> dict[str, Any]:
    """All fields of a dataclass by name, those of `younger` left out where they have their default."""
    unused = {field.name: field.default for field in fields(settings) if field.name in younger}
    return {name: value for name, value in asdict(settings).items() if name not in unused or value != unused[name]}
