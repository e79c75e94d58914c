"""One user's totals: the same in every order, each event counted once or told why not, and closed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.events import Interaction, Kind, Served, Status
from experiment.fold import UserFold, fold_user, settle
from experiment.metrics import COLUMNS

START = datetime(2026, 11, 23, tzinfo=UTC)
WINDOW = timedelta(seconds=10)
COLUMN = {
    Kind.IMPRESSION: "impressions",
    Kind.CLICK: "clicks",
    Kind.WATCH: "watch_s",
    Kind.LIKE: "likes",
    Kind.DISMISS: "dismisses",
}


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def served(request: str = "r", second: float = 0, **other: Any) -> Served:
    fields: dict[str, Any] = {
        "experiment": "e", "run": 1, "arm": "fp8", "bucket": 0.1, "phase": 2, "served_variant": "fp8",
        "table_version": 1, "reason": "SPLIT", "fallback": None, "failed": False, "slow": False, "forced": False,
        "latency_ms": 5.0,
    }  # fmt: skip
    return Served(request, "u", received_at=at(second), **(fields | other))


def event(
    name: str, kind: Kind, second: float = 1, request: str = "r", item: str = "i", value: float = 1.0
) -> Interaction:
    return Interaction(name, kind, request, "u", item, 0, value, at(second), at(second))


def fold(answers: Sequence[Served], *events: Interaction) -> UserFold:
    return fold_user(answers, events, WINDOW)


def counted(**totals: float) -> dict[str, float]:
    return dict.fromkeys(COLUMNS, 0.0) | totals


def test_the_first_request_by_the_gateways_clock_decides_arm_phase_and_window() -> None:
    found = fold([served("a", 5, arm="bf16", phase=3), served("b", 2, arm="fp8", phase=1)])
    assert (found.arm, found.phase, found.exposed_at, found.closes_at) == ("fp8", 1, at(2), at(12))


def test_requests_are_counted_with_what_was_wrong_with_them() -> None:
    answers = [served("a"), served("b", 1, slow=True), served("c", 2, fallback="timeout"), served("d", 3, failed=True)]
    assert fold(answers).totals == counted(requests=4, slow=1, fallbacks=1, failed=1)


@pytest.mark.parametrize(("second", "status"), [(9.999999, Status.COUNTED), (10, Status.LATE), (99, Status.LATE)])
def test_the_window_is_open_up_to_its_end_and_not_at_it(second: float, status: Status) -> None:
    found = fold([served("r", 0), served("s", second)], event("e", Kind.IMPRESSION, second))
    assert found.statuses == {"e": status}
    inside = status is Status.COUNTED
    assert found.totals == counted(requests=1 + inside, impressions=inside)


@pytest.mark.parametrize("kind", [Kind.CLICK, Kind.WATCH, Kind.LIKE, Kind.DISMISS])
def test_nothing_counts_for_an_item_that_was_not_seen(kind: Kind) -> None:
    found = fold([served()], event("e", kind, value=3.0))
    assert found.statuses == {"e": Status.PENDING}
    assert found.totals == counted(requests=1)
    value = 3.0 if kind is Kind.WATCH else 1.0
    seen = fold([served()], event("e", kind, value=3.0), event("i", Kind.IMPRESSION, 5))
    assert seen.statuses == {"e": Status.COUNTED, "i": Status.COUNTED}
    assert seen.totals == counted(requests=1, impressions=1) | {COLUMN[kind]: value}


@pytest.mark.parametrize(("item", "request_id"), [("another", "r"), ("i", "another")])
def test_an_impression_is_of_one_item_of_one_request(item: str, request_id: str) -> None:
    found = fold(
        [served("r"), served("another", 1)],
        event("click", Kind.CLICK),
        event("seen", Kind.IMPRESSION, item=item, request=request_id),
    )
    assert found.statuses["click"] is Status.PENDING


@pytest.mark.parametrize("kind", [Kind.IMPRESSION, Kind.CLICK, Kind.LIKE, Kind.DISMISS])
def test_a_second_event_of_a_kind_about_an_item_is_a_repeat(kind: Kind) -> None:
    seen = [] if kind is Kind.IMPRESSION else [event("seen", Kind.IMPRESSION)]
    found = fold([served()], *seen, event("second", kind, 3), event("first", kind, 2))
    assert (found.statuses["first"], found.statuses["second"]) == (Status.COUNTED, Status.REPEAT)
    assert found.totals[COLUMN[kind]] == 1


def test_watch_times_add_up() -> None:
    found = fold(
        [served()],
        event("seen", Kind.IMPRESSION),
        event("a", Kind.WATCH, 2, value=1.5),
        event("b", Kind.WATCH, 3, value=2.25),
        event("c", Kind.WATCH, 11, value=100.0),
    )
    assert found.totals["watch_s"] == 3.75
    assert found.statuses["c"] is Status.LATE


def test_a_click_on_what_was_seen_too_late_is_late() -> None:
    found = fold([served()], event("click", Kind.CLICK, 9), event("seen", Kind.IMPRESSION, 11))
    assert found.statuses == {"click": Status.LATE, "seen": Status.LATE}
    assert found.totals == counted(requests=1)


@pytest.mark.parametrize(("value", "triggered"), [(1.0, True), (0.0, False)])
def test_a_comparison_of_the_first_request_says_whether_the_user_is_triggered(value: float, triggered: bool) -> None:
    found = fold([served()], event("d", Kind.DIFFERS, item="", value=value))
    assert found.triggered is triggered
    assert (found.statuses, found.totals) == ({"d": Status.COUNTED}, counted(requests=1))


@pytest.mark.parametrize(
    ("request_id", "second", "status"),
    [("second", 6, Status.REPEAT), ("first", 10, Status.LATE), ("first", 9.999999, Status.COUNTED)],
)
def test_no_other_comparison_does(request_id: str, second: float, status: Status) -> None:
    found = fold(
        [served("second", 5), served("first", 0)], event("d", Kind.DIFFERS, second, request_id, item="", value=1.0)
    )
    assert found.statuses == {"d": status}
    assert found.triggered is (True if status is Status.COUNTED else None)


def test_the_trigger_follows_when_an_earlier_request_turns_up() -> None:
    comparison = event("d", Kind.DIFFERS, 6, "later", item="", value=1.0)
    assert fold([served("later", 5)], comparison).triggered is True
    found = fold([served("later", 5), served("earlier", 1)], comparison)
    assert (found.triggered, found.statuses) == (None, {"d": Status.REPEAT})


answers = st.lists(
    st.tuples(st.integers(0, 14), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=4
).map(
    lambda rows: [
        served(f"r{i}", second, slow=slow, failed=failed, fallback="timeout" if back else None)
        for i, (second, slow, failed, back) in enumerate(rows)
    ]
)
happenings = st.lists(
    st.tuples(
        st.sampled_from(Kind), st.integers(0, 14), st.integers(0, 3), st.sampled_from("ab"), st.sampled_from([0.1, 2.7])
    ),
    max_size=14,
)


def events_of(rows: Iterable[tuple[Kind, int, int, str, float]]) -> list[Interaction]:
    return [
        event(f"e{i}", kind, second, f"r{request}", item, value if kind is Kind.WATCH else 1.0)
        for i, (kind, second, request, item, value) in enumerate(rows)
    ]


def agree(totals: dict[str, float], statuses: dict[str, Status], events: Iterable[Interaction]) -> None:
    """What is counted in the totals is what the statuses call counted."""
    sums = dict.fromkeys(COLUMN.values(), 0.0)
    for one in events:
        if statuses.get(one.event_id) is Status.COUNTED and one.kind is not Kind.DIFFERS:
            sums[COLUMN[one.kind]] += one.value
    assert {name: totals[name] for name in sums} == pytest.approx(sums)


@given(answers, happenings, st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(asked: list[Served], rows: Any, chance: Any) -> None:
    events = events_of(rows)
    shuffled, mixed = [*asked], [*events]
    chance.shuffle(shuffled)
    chance.shuffle(mixed)
    assert fold_user(shuffled, mixed, WINDOW) == fold_user(asked, events, WINDOW)


@given(answers, happenings)
def test_every_event_has_one_fate_and_the_totals_are_those_that_count(asked: list[Served], rows: Any) -> None:
    events = events_of(rows)
    found = fold_user(asked, events, WINDOW)
    assert found.statuses.keys() == {one.event_id for one in events}
    agree(found.totals, found.statuses, events)
    unique = Counter(
        (one.kind, one.request_id, one.item_id)
        for one in events
        if found.statuses[one.event_id] is Status.COUNTED and one.kind is not Kind.WATCH
    )
    assert set(unique.values()) <= {1}
    late = {one.event_id for one in events if one.received_at >= found.closes_at}
    assert not any(found.statuses[name] in {Status.COUNTED, Status.PENDING} for name in late)


def test_a_row_that_no_look_has_read_is_folded_anew() -> None:
    new, statuses = settle(
        [served("r", 0)], [event("seen", Kind.IMPRESSION)], {"seen": Status.PENDING}, WINDOW, None, None
    )
    assert new is not None
    assert new.totals == counted(requests=1, impressions=1)
    assert statuses == {"seen": Status.COUNTED}


@pytest.mark.parametrize(("watermark", "frozen"), [(9, False), (10, True), (50, True)])
def test_a_row_that_a_look_has_read_never_changes(watermark: float, frozen: bool) -> None:
    before = {"seen": Status.COUNTED, "click": Status.PENDING}
    events = [event("seen", Kind.IMPRESSION), event("click", Kind.CLICK, 2)]
    new, statuses = settle([served(), served("s", 5)], events, before, WINDOW, at(watermark), at(10))
    assert (new is None) is frozen
    assert statuses == ({"click": Status.LATE} if frozen else {"seen": Status.COUNTED, "click": Status.COUNTED})


def test_a_request_that_comes_after_its_own_window_was_read_opens_none() -> None:
    new, statuses = settle([served()], [event("e", Kind.IMPRESSION)], {"e": Status.PENDING}, WINDOW, at(10), None)
    assert new is None
    assert statuses == {"e": Status.LATE}


def test_a_later_request_of_such_a_user_opens_its_own() -> None:
    asked = [served("old", 0, arm="old"), served("new", 5, arm="new")]
    events = [event("a", Kind.IMPRESSION, 1, "old"), event("b", Kind.IMPRESSION, 6, "new")]
    new, statuses = settle(asked, events, dict.fromkeys("ab", Status.PENDING), WINDOW, at(12), None)
    assert new is not None
    assert (new.arm, new.exposed_at, new.totals) == ("new", at(5), counted(requests=1, impressions=1))
    assert statuses == {"a": Status.LATE, "b": Status.COUNTED}


@dataclass
class Store:
    """One user in a store that settles whenever something arrives."""

    asked: list[Served] = field(default_factory=list)
    events: list[Interaction] = field(default_factory=list)
    statuses: dict[str, Status] = field(default_factory=dict)
    row: UserFold | None = None
    watermark: datetime | None = None

    def deliver(self, record: Served | Interaction) -> None:
        if isinstance(record, Served):
            self.asked.append(record)
        else:
            self.events.append(record)
            self.statuses[record.event_id] = Status.PENDING
        known = {answer.request_id for answer in self.asked}
        events = [one for one in self.events if one.request_id in known]
        if not self.asked:
            return
        before = {one.event_id: self.statuses[one.event_id] for one in events}
        closes_at = None if self.row is None else self.row.closes_at
        new, statuses = settle(self.asked, events, before, WINDOW, self.watermark, closes_at)
        self.row = self.row if new is None else new
        self.statuses |= statuses

    @property
    def is_read(self) -> bool:
        return self.row is not None and self.watermark is not None and self.row.closes_at <= self.watermark


deliveries = st.tuples(answers, happenings, st.randoms(use_true_random=False))


@given(deliveries, st.lists(st.one_of(st.none(), st.integers(0, 40)), min_size=20, max_size=20))
def test_whatever_arrives_after_a_look_what_the_look_read_stands(delivery: Any, looks: list[int | None]) -> None:
    asked, rows, chance = delivery
    records: list[Any] = [*asked, *events_of(rows)]
    chance.shuffle(records)
    store, read = Store(), None
    for record, look in zip(records, looks, strict=False):
        store.deliver(record)
        if read is not None:
            assert store.row == read
        if store.row is not None:
            agree(store.row.totals, store.statuses, store.events)
        if look is not None:
            store.watermark = max(store.watermark or at(0), at(look))
        if store.is_read:
            read = store.row


@given(deliveries)
def test_without_looks_piece_by_piece_is_all_at_once(delivery: Any) -> None:
    asked, rows, chance = delivery
    events = events_of(rows)
    records: list[Any] = [*asked, *events]
    chance.shuffle(records)
    store = Store()
    for record in records:
        store.deliver(record)
    known = {answer.request_id for answer in asked}
    assert store.row == fold_user(asked, [one for one in events if one.request_id in known], WINDOW)
    strangers = {one.event_id for one in events if one.request_id not in known}
    assert all(store.statuses[name] is Status.PENDING for name in strangers)
