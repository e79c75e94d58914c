"""The contract of reading feedback, over every store: whole users in order, each interaction once, what was logged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from experiment.feedback import ShownItem, Span
from experiment.store import schema
from experiment.store.events_sql import SqlEventLog
from experiment.store.feedback_sql import SqlFeedbackLog

SLATE = (("i1", -1.5), ("i2", -2.25), ("i3", None))


@pytest.fixture
def running(stores: Any, make: SimpleNamespace) -> Any:
    """Stores with one experiment, `fp8`."""
    stores.experiments.create(make.spec(), make.start, "tester")
    return stores


@pytest.fixture
def shown(make: SimpleNamespace) -> Callable[..., Any]:
    """Makes a served record with a slate."""
    return lambda request, *args, **other: make.served(request, *args, **({"history": ("h",), "slate": SLATE} | other))


def _ids(stores: Any, span: Span | None = None) -> list[str]:
    found = [slate.request_id for slate in stores.feedback.read(span or Span())]
    assert stores.feedback.count(span or Span()) == len(found)
    return found


def test_a_slate_comes_back_with_what_came_of_it(running: Any, make: SimpleNamespace, shown: Callable) -> None:
    running.log.append(
        [
            shown("r1", history=("50", 'é ☃ "'), slate=SLATE, liked=("☃",), profile=(("age", "25-34"),)),
            make.event("e1", "impression", "r1", "i1"),
            make.event("e2", "click", "r1", "i1", 2),
            make.event("e3", "watch", "r1", "i1", 3, value=30.0),
            make.event("e4", "watch", "r1", "i1", 4, value=1.5),
            make.event("e5", "impression", "r1", "i2"),
            make.event("e6", "dismiss", "r1", "i2", 5),
            make.event("e7", "click", "r1", "i3", 5),
            make.event("e8", "differs", "r1", "", 6),
        ]
    )
    (found,) = running.feedback.read(Span())
    assert (found.request_id, found.user_id, found.served_variant) == ("r1", "ann", "fp8")
    assert (found.received_at, found.history) == (make.start, ("50", 'é ☃ "'))
    assert (found.liked, found.profile) == (("☃",), (("age", "25-34"),))
    assert found.items == (
        ShownItem("i1", -1.5, seen=True, clicked=True, watch_s=31.5),
        ShownItem("i2", -2.25, seen=True, dismissed=True),
        ShownItem("i3", None),
    )


def test_whole_users_follow_each_other_in_the_order_of_time_over_many_pages(
    running: Any, make: SimpleNamespace, shown: Callable
) -> None:
    order = [7, 2, 9, 4, 0, 8, 1, 3, 6, 5]
    users = ("ann", "bob", "cid")
    running.log.append([shown(f"r{i}{user}", user, at_s=i) for i in order for user in users])
    running.log.append([make.event(f"e{i}", "impression", f"r{i}bob", "i1", user_id="bob", at_s=i) for i in order])
    assert _ids(running) == [f"r{i}{user}" for user in users for i in range(10)]
    seen = [slate.request_id for slate in running.feedback.read(Span()) if slate.items[0].seen]
    assert seen == [f"r{i}bob" for i in range(10)]


def test_an_interaction_sent_three_times_counts_once_whatever_its_user_takes_part_in(
    running: Any, make: SimpleNamespace, shown: Callable
) -> None:
    nowhere = {"experiment": None, "run": None, "arm": None, "bucket": None, "phase": None}
    records = [
        shown("r1", "ann"), shown("r2", "bob", **nowhere), shown("r3", "cid"), shown("r3b", "cid", at_s=4000),
        *(
            make.event(f"{kind}{copy}{request}", kind, request, "i1", at_s, value=value)
            for request, at_s in (("r1", 1), ("r2", 1), ("r3", 1), ("r3b", 4001))
            for kind, value, copies in (("impression", 1.0, 2), ("click", 1.0, 2), ("watch", 20.0, 1))
            for copy in range(copies)
        ),
    ]  # fmt: skip
    for _ in range(3):
        running.log.append(records)
    once = ShownItem("i1", -1.5, seen=True, clicked=True, watch_s=20.0)
    assert [slate.items[0] for slate in running.feedback.read(Span())] == [once] * 4
    assert running.log.counts()["late"] > 0, "the last one came after its user's window"
    assert running.log.counts()["unenrolled"] > 0


def test_a_span_chooses_by_time_and_by_who_answered(running: Any, make: SimpleNamespace, shown: Callable) -> None:
    running.log.append([shown(f"r{i}", at_s=i, served_variant=("bf16", "fp8")[i % 2]) for i in range(6)])
    since, until = make.start + timedelta(seconds=2), make.start + timedelta(seconds=5)
    assert _ids(running, Span(since, until)) == ["r2", "r3", "r4"]
    assert _ids(running, Span(since, variant="fp8")) == ["r3", "r5"]
    assert _ids(running, Span(until=since, variant="fp8")) == ["r1"]
    assert _ids(running, Span(variant="nobody")) == []


def test_requests_whose_slate_was_not_logged_are_left_out(running: Any, make: SimpleNamespace, shown: Callable) -> None:
    running.log.append([make.served("r1"), shown("r2"), make.served("r3", failed=True), shown("r4", history=())])
    assert _ids(running) == ["r2", "r4"]
    assert [slate.history for slate in running.feedback.read(Span())] == [("h",), ()]


def test_what_databases_dislike_is_replaced_alike_in_slates_and_in_events(
    running: Any, make: SimpleNamespace, shown: Callable
) -> None:
    odd = "nul \x00, half \ud83d"
    running.log.append(
        [
            shown("r1", history=(odd, "h"), slate=((odd, float("nan")), ("i2", float("-inf")))),
            make.event("e1", "impression", "r1", odd),
        ]
    )
    (found,) = running.feedback.read(Span())
    kept = odd.replace("\x00", "\N{REPLACEMENT CHARACTER}").replace("\ud83d", "?")
    assert found.history == (kept, "h")
    assert found.items == (ShownItem(kept, None, seen=True), ShownItem("i2", None))


def test_reading_may_be_given_up_and_writing_goes_on(running: Any, shown: Callable) -> None:
    running.log.append([shown(f"r{i}", at_s=i) for i in range(10)])
    reader = running.feedback.read(Span())
    assert next(reader).request_id == "r0"
    running.log.append([shown("r99", at_s=99)])
    assert [slate.request_id for slate in reader] == [f"r{i}" for i in range(1, 10)], "one snapshot"
    next(running.feedback.read(Span())).items  # noqa: B018
    assert len(_ids(running)) == 11


def test_a_page_is_all_that_is_read_at_a_time(migrated_sqlite: sa.Engine, shown: Callable) -> None:
    with migrated_sqlite.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))
    SqlEventLog(migrated_sqlite).append([shown(f"r{i:03}", at_s=i) for i in range(100)])
    statements: list[tuple[str, int]] = []

    def collect(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append((statement, len(parameters)))

    sa.event.listen(migrated_sqlite, "before_cursor_execute", collect)
    try:
        reader = SqlFeedbackLog(migrated_sqlite, page=10).read(Span())
        for _ in range(15):
            next(reader)
        reader.close()  # type: ignore[attr-defined] # a generator, which the port does not promise
    finally:
        sa.event.remove(migrated_sqlite, "before_cursor_execute", collect)
    first, *pages = [(text, count) for text, count in statements if text.startswith("SELECT")]
    assert "history" not in first[0], "the sort carries ids only"
    assert len(pages) == 2 * 2
    assert all(count <= 10 + 4 for _, count in pages)
