"""The records that travel from the gateway through the durable spool into the SQL store.

`Served` is written by the gateway for each answered request; `Interaction` is what a client reports about a slate that
it showed. Both are plain values; a record's id makes its delivery idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What happened to a slate. All but DIFFERS are reported by clients, about one item of it.

    DIFFERS: the gateway's own record about a user's first request: whether the other arm's slate would have differed.
    """

    IMPRESSION = "impression"
    CLICK = "click"
    WATCH = "watch"
    LIKE = "like"
    DISMISS = "dismiss"
    DIFFERS = "differs"


class Status(StrEnum):
    """What became of an interaction in the store.

    PENDING: its request, or the impression that a click needs, has not arrived yet (an orphan while it stays so).
    COUNTED: folded into its user's totals, exactly once.
    REPEAT: a second impression or click of the same item of the same request, or a comparison of slates that is not
    about its user's first request; kept, not counted.
    LATE: arrived after its user's exposure window had closed; kept, not counted.
    UNENROLLED: its user is in no experiment; kept, not counted.
    """

    PENDING = "pending"
    COUNTED = "counted"
    REPEAT = "repeat"
    LATE = "late"
    UNENROLLED = "unenrolled"


Slate = tuple[tuple[str, float | None], ...]
"""Shown items in order, each with its log probability under the policy that showed it (None: unknown)."""

Profile = tuple[tuple[str, str], ...]
"""Features of a user with their values, as the request named them."""


@dataclass(frozen=True, slots=True)
class Served:
    """One answered recommendation request, as the splitter saw it.

    experiment, run, arm, bucket and phase are None for users outside every experiment (arm is the ASSIGNED arm, the
    one that analysis uses; served_variant is who answered). phase is the ramp step at which the request was routed.
    fallback names why another variant answered (None: nobody fell back). failed: the user got no slate.
    slow: latency_ms was above the experiment's latency objective. forced: the arm came from an override and is
    never analysed.
    history, liked, profile, slate: what came with the request, items oldest first, and what was answered. All are empty
    where nothing was answered or where the service does not log them. They are for post-training; no look reads them.
    """

    request_id: str
    user_id: str
    experiment: str | None
    run: int | None
    arm: str | None
    bucket: float | None
    phase: int | None
    served_variant: str
    table_version: int
    reason: str
    fallback: str | None
    failed: bool
    slow: bool
    forced: bool
    latency_ms: float
    received_at: datetime
    history: tuple[str, ...] = ()
    slate: Slate = ()
    liked: tuple[str, ...] = ()
    profile: Profile = ()


@dataclass(frozen=True, slots=True)
class Interaction:
    """One client-reported event about one item of one slate, or the gateway's comparison of two slates.

    value: seconds for WATCH, 1.0 or 0.0 for DIFFERS, 1.0 otherwise. item_id is empty for DIFFERS. occurred_at is the
    client's clock, received_at the gateway's; only received_at decides whether the exposure window was still open.
    """

    event_id: str
    kind: Kind
    request_id: str
    user_id: str
    item_id: str
    position: int | None
    value: float
    occurred_at: datetime
    received_at: datetime


Record = Served | Interaction


def _items(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _slate(values: Iterable[Any]) -> Slate:
    return tuple((str(item), score) for item, score in values)


def _profile(values: Iterable[Any]) -> Profile:
    return tuple((str(name), str(value)) for name, value in values)


LOGGED: Mapping[str, Callable[[Iterable[Any]], tuple[Any, ...]]] = {
    "history": _items, "slate": _slate, "liked": _items, "profile": _profile,
}  # fmt: skip
"""What a request keeps for post-training, each with what makes it of its JSON."""

COMPARISON = "differs:"
"""How the event ids of comparisons begin; no client's may."""


def comparison(request_id: str, user_id: str, differs: bool, at: datetime) -> Interaction:
    """What the gateway writes once both arms have answered a request. Its id follows from the request's."""
    name = f"{COMPARISON}{request_id}"
    return Interaction(name, Kind.DIFFERS, request_id, user_id, "", None, float(differs), at, at)


def to_dict(record: Record) -> dict[str, Any]:
    """A JSON-ready dict; `type` tells the two records apart, times are ISO 8601 with offset.

    What is logged for post-training is left out where it is empty, so that such a record reads like one of before.
    """
    fields = columns(record)
    for name, value in fields.items():
        if isinstance(value, datetime):
            fields[name] = value.isoformat()
    for name in LOGGED:
        if not fields.get(name, True):
            del fields[name]
    return {"type": "served" if isinstance(record, Served) else "interaction", **fields}


def columns(record: Record) -> dict[str, Any]:
    """The record's fields as they are: `dataclasses.asdict` would copy each item of a long history."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def from_dict(fields: Mapping[str, Any]) -> Record:
    """Inverse of `to_dict`. Raises KeyError, TypeError or ValueError on a record that was not written by it.

    A record of before these were logged has no history and slate, and nothing that is liked and no profile.
    """
    values = {name: value for name, value in fields.items() if name != "type"}
    values["received_at"] = datetime.fromisoformat(values["received_at"])
    if fields["type"] == "served":
        return Served(**values | {name: made(values.get(name, ())) for name, made in LOGGED.items()})
    values["kind"] = Kind(values["kind"])
    values["occurred_at"] = datetime.fromisoformat(values["occurred_at"])
    return Interaction(**values)
