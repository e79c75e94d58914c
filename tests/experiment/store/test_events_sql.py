"""The event-log contract over every store: counted once, attributed once, in any order, however often it is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiment.events import Record
from experiment.metrics import COLUMNS
from experiment.ports import Ingested
from experiment.store import schema
from experiment.store.events_sql import SqlEventLog
from experiment.store.experiments_sql import SqlExperimentRepository
from experiment.store.schema import micros
from experiment.store.slate_columns import READ


@pytest.fixture
def running(stores: Any, make: SimpleNamespace) -> Any:
    """Stores with one experiment, `fp8`."""
    stores.experiments.create(make.spec(), make.start, "tester")
    return stores


def _totals(stores: Any, make: SimpleNamespace, arm: str = "fp8") -> dict[str, float]:
    return dict(stores.experiments.read_look("fp8", make.start).arms[arm].totals)


def _statuses(stores: Any) -> dict[str, int]:
    names = ("pending", "counted", "repeat", "late", "unenrolled")
    return {name: count for name, count in stores.log.counts().items() if name in names and count}


def _slate(make: SimpleNamespace) -> list[Record]:
    """One answered request of `ann`, two impressions, a click, 30 s of watching and a like."""
    return [
        make.served("r1"),
        make.event("e1", "impression", "r1", "i1"),
        make.event("e2", "impression", "r1", "i2"),
        make.event("e3", "click", "r1", "i1", 2),
        make.event("e4", "watch", "r1", "i1", 3, value=30.0),
        make.event("e5", "like", "r1", "i2", 4),
    ]


_SLATE_TOTALS = {"requests": 1.0, "impressions": 2.0, "clicks": 1.0, "watch_s": 30.0, "likes": 1.0}


def test_append_of_nothing_does_nothing(running: Any) -> None:
    assert running.log.append([]) == Ingested(0, 0)


def test_a_slate_is_folded_into_its_users_totals(running: Any, make: SimpleNamespace) -> None:
    assert running.log.append(_slate(make)) == Ingested(6, 0)
    assert _totals(running, make) == dict.fromkeys(COLUMNS, 0.0) | _SLATE_TOTALS
    assert sum(_totals(running, make, "bf16").values()) == 0
    assert _statuses(running) == {"counted": 5}


def test_records_sent_three_times_count_once(running: Any, make: SimpleNamespace) -> None:
    assert running.log.append(_slate(make) + _slate(make)) == Ingested(6, 6)
    assert running.log.append(_slate(make)) == Ingested(0, 6)
    assert _totals(running, make) == dict.fromkeys(COLUMNS, 0.0) | _SLATE_TOTALS
    counts = running.log.counts()
    assert counts["served"] + counts["impression"] + counts["click"] + counts["watch"] + counts["like"] == 6
    assert counts["duplicates"] == 12


def test_a_click_before_its_impression_and_its_request_is_counted_when_they_arrive(
    running: Any, make: SimpleNamespace
) -> None:
    request, impression, _, click, *_ = _slate(make)
    running.log.append([click])
    assert (_totals(running, make)["clicks"], _statuses(running)) == (0, {"pending": 1})
    running.log.append([request])
    assert (_totals(running, make)["clicks"], _statuses(running)) == (0, {"pending": 1})
    running.log.append([impression])
    assert (_totals(running, make)["clicks"], _statuses(running)) == (1, {"counted": 2})


def test_a_click_without_an_impression_stays_an_orphan_and_is_shown(running: Any, make: SimpleNamespace) -> None:
    running.log.append([make.served("r1"), make.event("e1", "click", "r1"), make.event("e2", "impression", "r1", "i2")])
    assert _totals(running, make)["clicks"] == 0
    assert running.experiments.read_look("fp8", make.start).orphans == 1


def test_a_second_click_and_a_second_impression_are_kept_but_not_counted(running: Any, make: SimpleNamespace) -> None:
    again = [make.event("e6", "click", "r1", "i1", 5), make.event("e7", "impression", "r1", "i1", 6)]
    running.log.append([*_slate(make), *again])
    assert _totals(running, make) == dict.fromkeys(COLUMNS, 0.0) | _SLATE_TOTALS
    assert _statuses(running) == {"counted": 5, "repeat": 2}


def test_watch_times_of_one_item_add_up(running: Any, make: SimpleNamespace) -> None:
    running.log.append([*_slate(make), make.event("e6", "watch", "r1", "i1", 9, value=12.5)])
    assert _totals(running, make)["watch_s"] == 42.5


def test_only_watching_counts_by_its_value(running: Any, make: SimpleNamespace) -> None:
    running.log.append([*_slate(make), make.event("e6", "dismiss", "r1", "i2", 9, value=7.0)])
    assert _totals(running, make)["dismisses"] == 1


def test_outcomes_of_requests_are_counted(running: Any, make: SimpleNamespace) -> None:
    running.log.append(
        [
            make.served("r1", failed=True),
            make.served("r2", at_s=5, slow=True, fallback="bf16"),
            make.served("r3", at_s=3600, failed=True),
        ]
    )
    found = _totals(running, make)
    assert {name: found[name] for name in ("requests", "failed", "slow", "fallbacks")} == {
        "requests": 2, "failed": 1, "slow": 1, "fallbacks": 1,
    }  # fmt: skip


def test_nobody_outside_an_experiment_is_counted(running: Any, make: SimpleNamespace) -> None:
    nowhere = {"experiment": None, "run": None, "arm": None, "bucket": None, "phase": None, "reason": "DEFAULT"}
    running.log.append(
        [
            make.served("r1", **nowhere),
            make.served("r2", "bob", forced=True, reason="TARGETING_MATCH"),
            make.served("r3", "cid", experiment="of-another-database"),
            *(make.event(f"e{i}", "impression", f"r{i}") for i in (1, 2, 3)),
        ]
    )
    running.log.append([make.event("e4", "click", "r1")])
    look = running.experiments.read_look("fp8", make.start)
    assert look.arms["fp8"].exposed_by_phase == (0, 0)
    assert _statuses(running) == {"unenrolled": 4}


def test_the_first_request_opens_the_window_even_when_it_arrives_last(running: Any, make: SimpleNamespace) -> None:
    running.log.append([make.served("r2", at_s=3000, phase=1), make.event("e1", "impression", "r2", at_s=4000)])
    assert _totals(running, make)["impressions"] == 1
    running.log.append([make.served("r1", at_s=0, phase=0)])
    assert (_totals(running, make)["impressions"], _statuses(running)) == (0, {"late": 1})
    assert running.experiments.read_look("fp8", make.start).arms["fp8"].exposed_by_phase == (1, 0)


@pytest.mark.parametrize(("at_s", "clicks"), [(3599.999999, 1), (3600, 0)])
def test_the_window_ends_to_the_microsecond(running: Any, make: SimpleNamespace, at_s: float, clicks: int) -> None:
    running.log.append([*_slate(make)[:2], make.event("e3", "click", "r1", "i1", at_s)])
    assert _totals(running, make)["clicks"] == clicks


def _close(stores: Any, make: SimpleNamespace, at_s: float) -> None:
    """A look that has read every window up to `at_s`."""
    before = stores.experiments.get("fp8")
    watermark = make.start + timedelta(seconds=at_s)
    make.commit(stores.experiments, replace(before, watermark=watermark), before)


def test_a_late_click_never_reopens_a_closed_cohort(running: Any, make: SimpleNamespace) -> None:
    running.log.append([*_slate(make)[:2], make.event("e9", "click", "r1", "i9", 5)])
    _close(running, make, 3600)
    before = _totals(running, make)
    running.log.append(
        [
            make.event("e3", "click", "r1", "i1", 2),
            make.event("e4", "impression", "r1", "i9", 4),
            make.served("r2", at_s=10, slow=True),
            make.event("e5", "impression", "r2", at_s=11),
        ]
    )
    assert _totals(running, make) == before
    assert _statuses(running) == {"counted": 1, "late": 4}
    assert running.experiments.read_look("fp8", make.start).late == 4


def test_a_user_whose_window_was_closed_unseen_is_never_added(running: Any, make: SimpleNamespace) -> None:
    _close(running, make, 3600)
    running.log.append(_slate(make))
    assert _statuses(running) == {"late": 5}
    assert running.experiments.read_look("fp8", make.start).arms["fp8"].exposed_by_phase == (0, 0)
    running.log.append([make.served("r2", at_s=60), make.event("e9", "impression", "r2", at_s=61)])
    assert _totals(running, make)["impressions"] == 1
    assert _statuses(running) == {"late": 5, "counted": 1}


def test_a_new_run_starts_from_nothing_and_old_requests_stay_with_the_old_one(
    running: Any, make: SimpleNamespace
) -> None:
    running.log.append(_slate(make))
    before = running.experiments.get("fp8")
    make.commit(running.experiments, replace(before, run=2), before)
    running.log.append([make.event("e6", "click", "r1", "i2", 5), make.served("r2", run=2, at_s=9)])
    assert _totals(running, make) == dict.fromkeys(COLUMNS, 0.0) | {"requests": 1.0}


def test_what_databases_dislike_does_not_hold_up_the_rest(running: Any, make: SimpleNamespace) -> None:
    odd = "nul \x00, half \ud83d, quote ', ☃ 👍"
    bad = {"user_id": odd, "value": float("inf"), "position": 2**70}
    running.log.append([make.served("r1", odd), make.event(odd, "impression", "r1", odd, **bad), *_slate(make)[1:]])
    running.log.append([make.event("e9", "click", "r1", odd, **bad), make.event("e8", "watch", "r1", odd, **bad)])
    running.log.append([make.event(odd, "impression", "r1", odd, **bad)])
    assert _totals(running, make) == dict.fromkeys(COLUMNS, 0.0) | _SLATE_TOTALS | {"clicks": 2.0, "impressions": 3.0}
    assert running.log.counts()["duplicates"] == 1


def test_counts_add_up_to_the_rows(running: Any, make: SimpleNamespace) -> None:
    running.log.append(_slate(make))
    counts = running.log.counts()
    assert set(counts) == {
        "served", "impression", "click", "watch", "like", "dismiss", "differs",
        "pending", "counted", "repeat", "late", "unenrolled", "duplicates",
    }  # fmt: skip
    kinds = sum(counts[name] for name in ("impression", "click", "watch", "like", "dismiss"))
    assert kinds == sum(counts[name] for name in ("pending", "counted", "repeat", "late", "unenrolled")) == 5


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A choice of records, with repetitions and in any order, and where the batches end."""
    chosen = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=40))
    cuts = draw(st.lists(st.integers(0, len(chosen)), max_size=4).map(sorted))
    return chosen, cuts


def _universe(make: SimpleNamespace) -> list[Record]:
    """Records of two users around the end of their windows, with repeats, orphans and strangers among them."""
    nowhere = {"experiment": None, "run": None, "arm": None, "bucket": None, "phase": None}
    records: list[Record] = [
        make.served("r1", at_s=100),
        make.served("r2", at_s=50, slow=True, phase=1),
        make.served("r3", at_s=3680, failed=True),
        make.served("r4", "bob", at_s=10, arm="bf16", fallback="bf16"),
        make.served("r5", "bob", forced=True),
        make.served("r6", "cid", **nowhere),
    ]
    for i, request in enumerate(("r1", "r2", "r3", "r4", "r5", "r6", "r7")):
        for j, kind in enumerate((*("impression", "click", "watch") * 2, "like", "dismiss", "differs")):
            item = f"i{j % 2}"
            at_s = (101, 3649, 3651, 3701)[(i + j) % 4]
            records.append(make.event(f"{request}{kind}{j}", kind, request, item, at_s, value=0.25 * (j + 1)))
    return records


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=_histories())
def test_any_order_any_multiplicity_and_any_batches_give_the_same_totals(
    new_stores: Callable[[], Any], make: SimpleNamespace, history: tuple[list[int], list[int]]
) -> None:
    universe, (chosen, cuts) = _universe(make), history
    sent = [universe[i % len(universe)] for i in chosen]
    stores = new_stores()
    stores.experiments.create(make.spec(), make.start, "tester")
    accepted = 0
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        ingested = stores.log.append(sent[start:end])
        accepted += ingested.fresh + ingested.duplicates
    _agrees_with_the_reference(stores, make, sent)
    counts = stores.log.counts()
    rows = sum(counts[name] for name in ("served", "impression", "click", "watch", "like", "dismiss", "differs"))
    assert accepted == len(sent) == rows + counts["duplicates"]


def _agrees_with_the_reference(stores: Any, make: SimpleNamespace, sent: Sequence[Record]) -> None:
    expected = make.naive(sent)
    arms = stores.experiments.read_look("fp8", make.start).arms
    for arm, users in (("fp8", ["ann"]), ("bf16", ["bob"])):
        exposed = [expected[user] for user in users if user in expected]
        assert sum(arms[arm].exposed_by_phase) == len(exposed)
        assert dict(arms[arm].totals) == {name: sum(row[name] for row in exposed) for name in COLUMNS}


def test_an_appended_batch_reads_its_users_rows_by_index(migrated_sqlite: sa.Engine, make: SimpleNamespace) -> None:
    statements: list[tuple[str, Any]] = []

    def collect(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith("SELECT") and not many:
            statements.append((statement, parameters))

    with migrated_sqlite.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    SqlExperimentRepository(migrated_sqlite).create(make.spec(), make.start, "tester")
    sa.event.listen(migrated_sqlite, "before_cursor_execute", collect)
    try:
        SqlEventLog(migrated_sqlite).append(_slate(make))
    finally:
        sa.event.remove(migrated_sqlite, "before_cursor_execute", collect)
    assert statements
    with migrated_sqlite.connect() as connection:
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert not [step.detail for step in plan if step.detail.startswith("SCAN")], statement


def test_histories_and_slates_are_written_and_never_read_by_the_event_path_or_a_look(
    migrated_sqlite: sa.Engine, make: SimpleNamespace
) -> None:
    statements: list[str] = []

    def collect(_c: Any, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool) -> None:
        statements.append(statement)

    with migrated_sqlite.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    experiments, log = SqlExperimentRepository(migrated_sqlite), SqlEventLog(migrated_sqlite)
    experiments.create(make.spec(), make.start, "tester")
    sa.event.listen(migrated_sqlite, "before_cursor_execute", collect)
    try:
        logged = {"history": ("h",), "slate": (("i1", -1.0),), "liked": ("h",), "profile": (("age", "25-34"),)}
        log.append([make.served("r1", **logged), *_slate(make)[1:]])
        experiments.read_look("fp8", make.start)
        log.counts()
    finally:
        sa.event.remove(migrated_sqlite, "before_cursor_execute", collect)
    naming = {one.split()[0] for one in statements if any(name in one for name in READ)}
    assert naming == {"INSERT"}
    assert any(statement.startswith("SELECT") and "FROM served" in statement for statement in statements)


def test_times_are_kept_to_the_microsecond(make: SimpleNamespace) -> None:
    assert schema.moment(micros(make.start + timedelta(microseconds=1))) == make.start + timedelta(microseconds=1)
    assert schema.moment(None) is None
