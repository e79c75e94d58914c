"""What came of logged slates, item by item: what post-training learns from. Nothing that decides reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from experiment.events import Interaction, Kind, Profile, Served, Status

LEARNED_FROM = frozenset({Status.COUNTED, Status.LATE, Status.UNENROLLED})
"""An orphan and a repeat say nothing new. The exposure window and the enrolment keep the others out of the statistics,
for they are about comparing arms: what a user did later, or outside every experiment, is feedback all the same."""


@dataclass(frozen=True, slots=True)
class Span:
    """Requests with since <= received_at < until that `variant` answered; None does not restrict."""

    since: datetime | None = None
    until: datetime | None = None
    variant: str | None = None

    def __contains__(self, request: object) -> bool:
        return (
            isinstance(request, Served | LoggedSlate)
            and (self.since is None or self.since <= request.received_at)
            and (self.until is None or request.received_at < self.until)
            and (self.variant is None or self.variant == request.served_variant)
        )


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One item of a slate. score: its log probability under the policy that showed it, None where that is unknown.

    seen: the client reported an impression; without one nothing else is counted. watch_s: all its watches together.
    """

    item_id: str
    score: float | None
    seen: bool = False
    clicked: bool = False
    watch_s: float = 0.0
    liked: bool = False
    dismissed: bool = False


@dataclass(frozen=True, slots=True)
class LoggedSlate:
    """A request with what came with it (item ids, oldest first) and its items: first the slate in order, then whatever
    else the client says it showed, by id."""

    request_id: str
    user_id: str
    served_variant: str
    received_at: datetime
    history: tuple[str, ...]
    items: tuple[ShownItem, ...]
    liked: tuple[str, ...] = ()
    profile: Profile = ()


def logged_slate(served: Served, events: Iterable[tuple[Interaction, Status]]) -> LoggedSlate:
    """A request and all interactions about it -> what came of it, each interaction counted once.

    The store's statuses rule out orphans and repeats among what it folds. Of what it does not fold, of each kind the
    first event about an item counts by the same rule, watches add up, and nothing counts without its impression.
    """
    about: dict[str, set[Kind]] = {}
    watched_s: dict[str, float] = {}
    for event, status in events:
        if status in LEARNED_FROM and event.kind is not Kind.DIFFERS:
            about.setdefault(event.item_id, set()).add(event.kind)
            if event.kind is Kind.WATCH:
                watched_s[event.item_id] = watched_s.get(event.item_id, 0.0) + max(event.value, 0.0)
    scores = dict(served.slate)
    others = sorted(item for item, kinds in about.items() if Kind.IMPRESSION in kinds and item not in scores)
    scores |= dict.fromkeys(others)
    return LoggedSlate(
        served.request_id,
        served.user_id,
        served.served_variant,
        served.received_at,
        served.history,
        tuple(_shown(item, score, about.get(item, set()), watched_s.get(item, 0.0)) for item, score in scores.items()),
        served.liked,
        served.profile,
    )


def _shown(item_id: str, score: float | None, kinds: set[Kind], watch_s: float) -> ShownItem:
    if Kind.IMPRESSION not in kinds:
        return ShownItem(item_id, score)
    return ShownItem(
        item_id,
        score,
        seen=True,
        clicked=Kind.CLICK in kinds,
        watch_s=watch_s,
        liked=Kind.LIKE in kinds,
        dismissed=Kind.DISMISS in kinds,
    )
