"""From slates to lessons: scores by the user's own earlier watches, and everything that is left out is counted."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from experiment.feedback import LoggedSlate, ShownItem, Span
from model.catalogue import Catalogue
from model.config import PRESETS
from model.signals import profile_buckets
from serving.gathered import Gathered, gather

NOW = datetime(2026, 11, 23, tzinfo=UTC)
NAMES = tuple(f"i{item}" for item in range(10))
CATALOGUE = Catalogue(NAMES, ("",) * 10, ((),) * 10)
CONFIG = replace(PRESETS["tiny"], context_len=3)


def item(
    name: str, watch_s: float = 0.0, score: float | None = -1.0, *, seen: bool = True, gone: bool = False
) -> ShownItem:
    return ShownItem(name, score, seen=seen, watch_s=watch_s, dismissed=gone)


def slate(user: str, hour: int, *items: ShownItem, history: tuple[str, ...] = (), variant: str = "fp8") -> LoggedSlate:
    return LoggedSlate(f"{user}{hour}", user, variant, NOW + timedelta(hours=hour), history, items)


def gathered(*slates: LoggedSlate, span: Span | None = None, durations: dict[str, float] | None = None) -> Gathered:
    return gather(slates, CATALOGUE, span or Span(), durations, CONFIG)


def test_an_item_is_ranked_among_what_its_user_watched_in_earlier_requests() -> None:
    found = gathered(
        slate("ann", 0, item("i0", 10), item("i1", 20), item("i2", 30), item("i3", 40)),
        slate("ann", 1, item("i4", 30), item("i5", 5), item("i6", 0), item("i7", 99)),
        slate("bob", 2, item("i0", 30)),
    )
    assert found.lessons.score[4:8].tolist() == [0.75, 0.0, 0.0, 1.0]
    assert [math.isnan(score) for score in found.lessons.score] == [True] * 4 + [False] * 4 + [True]
    assert (found.scored, found.shown, found.slates, found.watch_s) == (4, 9, 3, 264.0)


def test_only_watches_of_like_duration_are_compared_with() -> None:
    durations = {"i0": 10.0, "i1": 500.0, "i2": 11.0, "i3": 480.0}
    found = gathered(
        slate("ann", 0, item("i0", 8), item("i1", 9)),
        slate("ann", 1, item("i2", 8), item("i3", 8)),
        durations=durations,
    )
    assert found.lessons.score[2:].tolist() == [1.0, 0.0], "8 s are long of 11 s and short of 480 s"
    assert gathered(
        slate("ann", 0, item("i0", 8), item("i1", 9)), slate("ann", 1, item("i2", 8), item("i3", 8))
    ).lessons.score[2:].tolist() == [0.5, 0.5], "one bucket for all"


def test_an_item_without_a_duration_is_not_compared_but_may_be_disliked() -> None:
    found = gathered(
        slate("ann", 0, item("i0", 8), item("i9", 8)), slate("ann", 1, item("i9", 7, gone=True)), durations={"i0": 10.0}
    )
    assert math.isnan(found.lessons.score[2])
    assert found.lessons.disliked.tolist() == [False, False, True]
    assert (found.without_duration, found.disliked) == (2, 1)


def test_what_was_not_seen_teaches_nothing() -> None:
    assert len(gathered(slate("ann", 0, item("i0", seen=False), item("i1", 3))).lessons) == 1


def test_items_that_the_catalogue_lacks_are_left_out_and_counted() -> None:
    found = gathered(
        slate("ann", 0, item("i0", 5), item("new", 5), history=("i1", "gone", "i2")),
        slate("ann", 1, item("i3", 5), history=("gone",)),
    )
    assert (found.unknown_items, found.unknown_history, found.shown) == (1, 2, 3)
    assert found.lessons.item.tolist() == [0, 3]
    assert found.lessons.history.values.tolist() == [1, 2]
    assert found.lessons.score[1] == 1.0, "its watch was one of the user's all the same"


def test_a_model_with_the_pathways_is_told_what_its_users_like_and_their_profiles() -> None:
    asked = replace(
        slate("ann", 0, item("i0", 5), history=("i1",)), liked=("i2", "gone", "i3", "i4"), profile=(("age", "25-34"),)
    )
    plain = gathered(asked)
    assert (plain.unknown_history, len(plain.lessons.liked.values), len(plain.lessons.features.values)) == (1, 0, 0)
    told = gather([asked], CATALOGUE, Span(), None, replace(CONFIG, positive_len=2, profile_features=7))
    assert told.lessons.liked.values.tolist() == [3, 4]
    assert told.lessons.features.values.tolist() == profile_buckets({"age": "25-34"}, 7)


def test_the_newest_of_a_long_history_is_kept() -> None:
    found = gathered(slate("ann", 0, item("i0"), history=("i1", "i2", "i3", "i4")))
    assert found.lessons.history.values.tolist() == [2, 3, 4]


def test_other_requests_only_bring_watches_to_compare_with() -> None:
    span = Span(since=NOW + timedelta(hours=1), variant="fp8")
    found = gathered(
        slate("ann", 0, item("i0", 10), item("i1", 20)),
        slate("ann", 1, item("i2", 30), variant="bf16"),
        slate("ann", 2, item("i3", 25, score=None)),
        span=span,
    )
    assert (found.read, found.slates, found.newest) == (3, 1, NOW + timedelta(hours=2))
    assert found.lessons.score.tolist() == pytest.approx([2 / 3])
    assert math.isnan(found.lessons.old_log_prob[0])


def test_a_log_without_slates_gives_no_lessons_and_progress_is_told() -> None:
    told: list[int] = []
    found = gather([], CATALOGUE, Span(), None, CONFIG, told.append)
    assert (len(found.lessons), found.newest, told) == (0, None, [])
    gather([slate("ann", 0), slate("ann", 1)], CATALOGUE, Span(), None, CONFIG, told.append)
    assert told == [1, 2]
