"""What came of a slate: each interaction once, nothing without its impression, and what was not shown by us, too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from experiment.events import Interaction, Kind, Status
from experiment.feedback import LoggedSlate, ShownItem, Span, logged_slate
from tests.experiment.test_events import NOW, served

SLATE = (("a", -1.0), ("b", -2.0))
SERVED = served(history=("x", "y"), slate=SLATE, liked=("y",), profile=(("age", "25-34"),))


def event(
    kind: Kind, item: str = "a", value: float = 1.0, status: Status = Status.COUNTED
) -> tuple[Interaction, Status]:
    return Interaction(f"{kind}{item}{value}", kind, "r", "u", item, 0, value, NOW, NOW), status


def items(*events: tuple[Interaction, Status]) -> dict[str, ShownItem]:
    return {item.item_id: item for item in logged_slate(SERVED, events).items}


def test_a_slate_without_events_was_not_seen() -> None:
    assert logged_slate(SERVED, []) == LoggedSlate(
        "r", "u", "fp8", NOW, ("x", "y"), (ShownItem("a", -1.0), ShownItem("b", -2.0)), ("y",), (("age", "25-34"),)
    )


@pytest.mark.parametrize("status", [Status.COUNTED, Status.LATE, Status.UNENROLLED])
def test_what_is_out_of_the_statistics_is_feedback_all_the_same(status: Status) -> None:
    found = items(
        event(Kind.IMPRESSION, status=status),
        event(Kind.CLICK, status=status),
        event(Kind.WATCH, value=30.0, status=status),
        event(Kind.WATCH, value=12.5, status=status),
        event(Kind.LIKE, status=status),
        event(Kind.IMPRESSION, "b", status=status),
        event(Kind.DISMISS, "b", status=status),
    )
    assert found["a"] == ShownItem("a", -1.0, seen=True, clicked=True, watch_s=42.5, liked=True)
    assert found["b"] == ShownItem("b", -2.0, seen=True, dismissed=True)


@pytest.mark.parametrize("status", [Status.PENDING, Status.REPEAT])
def test_orphans_and_repeats_count_for_nothing(status: Status) -> None:
    found = items(event(Kind.IMPRESSION), event(Kind.CLICK, status=status), event(Kind.DISMISS, status=status))
    assert found["a"] == ShownItem("a", -1.0, seen=True)


def test_nothing_counts_without_its_impression() -> None:
    assert items(event(Kind.CLICK), event(Kind.WATCH, value=9.0), event(Kind.DISMISS))["a"] == ShownItem("a", -1.0)


def test_an_item_that_something_else_put_into_the_slate_has_no_probability() -> None:
    found = items(event(Kind.IMPRESSION, "z"), event(Kind.WATCH, "z", 5.0), event(Kind.CLICK, "never shown"))
    assert list(found) == ["a", "b", "z"]
    assert found["z"] == ShownItem("z", None, seen=True, watch_s=5.0)


def test_a_comparison_of_slates_is_no_feedback() -> None:
    assert list(items(event(Kind.DIFFERS, ""))) == ["a", "b"]


def test_a_span_is_half_open_and_may_name_a_variant() -> None:
    later = NOW + timedelta(seconds=1)
    assert SERVED in Span()
    assert SERVED in Span(NOW, later, "fp8")
    assert logged_slate(SERVED, []) in Span(NOW, later, "fp8")
    for span in (Span(until=NOW), Span(since=later), Span(variant="bf16")):
        assert SERVED not in span
    assert datetime(2026, 1, 1, tzinfo=UTC) not in Span()
