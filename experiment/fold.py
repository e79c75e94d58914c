"""From one user's raw records to one row of totals: pure, and the same in whatever order the records arrived.

The store recomputes a user whenever something new arrives for them, instead of adding to counters. A sum over a set
does not depend on the order or the number of deliveries; a counter does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from experiment.events import Interaction, Kind, Served, Status
from experiment.metrics import COLUMNS

_COLUMN_OF = {
    Kind.IMPRESSION: "impressions",
    Kind.CLICK: "clicks",
    Kind.WATCH: "watch_s",
    Kind.LIKE: "likes",
    Kind.DISMISS: "dismisses",
}


@dataclass(frozen=True, slots=True)
class UserFold:
    """One user of one run. totals: every column of METRICS, within the exposure window [exposed_at, closes_at).

    triggered: whether the other arm would have answered the first request with another slate (None: not compared).
    """

    arm: str
    phase: int
    exposed_at: datetime
    closes_at: datetime
    totals: dict[str, float]
    statuses: dict[str, Status] = field(default_factory=dict)
    triggered: bool | None = None


def fold_user(served: Sequence[Served], interactions: Iterable[Interaction], window: timedelta) -> UserFold:
    """All records of one user in one run -> the user's totals, and what became of each interaction.

    served: at least one, none of them forced. The first of them, by the gateway's clock, opens the window. Of each kind
    the first event about an item of a request counts; watch times add up; all but impressions need their impression.
    A comparison of slates counts if it is about the first request: only then were both arms in the same state.
    """
    answered = sorted(served, key=lambda record: (record.received_at, record.request_id))
    first = answered[0]
    closes_at = first.received_at + window
    totals = dict.fromkeys(COLUMNS, 0.0)
    for record in answered:
        if record.received_at < closes_at:
            totals["requests"] += 1
            totals["slow"] += record.slow
            totals["failed"] += record.failed
            totals["fallbacks"] += record.fallback is not None
    statuses: dict[str, Status] = {}
    shown: dict[tuple[str, str], Status] = {}
    seen: set[tuple[Kind, str, str]] = set()
    triggered: bool | None = None
    for event in sorted(interactions, key=_impressions_first):
        if event.kind is Kind.DIFFERS:
            statuses[event.event_id] = _about_the_first(event, first, closes_at, known=triggered is not None)
            if statuses[event.event_id] is Status.COUNTED:
                triggered = event.value > 0
            continue
        item = (event.request_id, event.item_id)
        status = Status.COUNTED if event.received_at < closes_at else Status.LATE
        if event.kind is not Kind.IMPRESSION and status is Status.COUNTED:
            status = shown.get(item, Status.PENDING)
        if event.kind is not Kind.WATCH and status is not Status.PENDING:
            status = Status.REPEAT if (event.kind, *item) in seen else status
            seen.add((event.kind, *item))
        if event.kind is Kind.IMPRESSION:
            shown.setdefault(item, status)
        if status is Status.COUNTED:
            totals[_COLUMN_OF[event.kind]] += event.value if event.kind is Kind.WATCH else 1
        statuses[event.event_id] = status
    return UserFold(first.arm or "", first.phase or 0, first.received_at, closes_at, totals, statuses, triggered)


def _about_the_first(event: Interaction, first: Served, closes_at: datetime, *, known: bool) -> Status:
    """What becomes of a comparison of slates; known: another one about the first request came before it."""
    if event.received_at >= closes_at:
        return Status.LATE
    return Status.REPEAT if known or event.request_id != first.request_id else Status.COUNTED


def settle(
    served: Sequence[Served],
    interactions: Sequence[Interaction],
    before: Mapping[str, Status],
    window: timedelta,
    watermark: datetime | None,
    closes_at: datetime | None,
) -> tuple[UserFold | None, dict[str, Status]]:
    """What a store has to write for one user: the new row of totals (None: leave it), and the interactions' statuses.

    before: event id -> status so far. watermark: the latest time that a look has closed. closes_at: when the window of
    the row in the store closes (None: no row yet). A row that a look has read never changes, and a request that arrives
    after a look has closed its own window opens none: it was not there for that look, so it is never there.
    """
    kept = served
    if watermark is not None:
        frozen = closes_at is not None and closes_at <= watermark
        kept = [] if frozen else [record for record in served if record.received_at + window > watermark]
    requests = {record.request_id for record in kept}
    outside = (event.event_id for event in interactions if event.request_id not in requests)
    statuses = {event: Status.LATE for event in outside if before[event] is Status.PENDING}
    if not kept:
        return None, statuses
    fold = fold_user(kept, (event for event in interactions if event.request_id in requests), window)
    return fold, statuses | fold.statuses


def _impressions_first(event: Interaction) -> tuple[bool, datetime, str]:
    return event.kind is not Kind.IMPRESSION, event.received_at, event.event_id
