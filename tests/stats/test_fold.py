"""Folding: any batching of any stream gives what a rebuild gives, to 1e-12."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.errors import StatsError
from stats.fold import Fold, rebuild, rebuild_arms

NAMES = ("sx", "sy", "m_xx", "m_yy", "m_xy")


def stream(seed: int, events: int, users: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, users, events), (rng.random(events) < 0.1) * rng.lognormal(0, 1, events), np.ones(events)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_any_batching_equals_a_rebuild(seed: int, sizes: list[int]) -> None:
    users, x, y = stream(seed, sum(sizes), 25)
    fold, start = Fold(capacity=4), 0
    for size in sizes:
        fold.add(users[start : start + size], x[start : start + size], y[start : start + size])
        start += size
    fresh = rebuild(users, x, y)
    assert fold.moments.n == fresh.n
    for name in NAMES:
        scale = 1e-12 * max(1.0, fresh.m_xx, fresh.m_yy + fresh.sy**2 / fresh.n)
        assert getattr(fold.moments, name) == pytest.approx(getattr(fresh, name), rel=1e-12, abs=scale), name


def test_a_million_events_in_small_batches_stay_within_1e_12() -> None:
    users, x, y = stream(3, 1_000_000, 20_000)
    fold = Fold()
    for start in range(0, users.size, 2000):
        fold.add(users[start : start + 2000], x[start : start + 2000], y[start : start + 2000])
    fresh = rebuild(users, x, y)
    for name in NAMES:
        tolerance = 1e-12 * (fresh.m_xx * fresh.m_yy) ** 0.5 if name == "m_xy" else 0
        assert getattr(fold.moments, name) == pytest.approx(getattr(fresh, name), rel=1e-12, abs=tolerance), name


def test_rebuild_without_denominators_counts_events() -> None:
    users, x, y = stream(4, 500, 40)
    assert rebuild(users, x) == rebuild(users, x, y)
    assert rebuild(np.array([], dtype=np.int64), np.array([])).n == 0


def test_nothing_changes_on_an_empty_or_refused_batch() -> None:
    fold = Fold()
    before = fold.add(np.array([1, 1, 4]), np.array([1.0, 0.0, 2.0]), np.ones(3))
    assert fold.add(np.array([], dtype=np.int64), np.array([]), np.array([])) is before
    for users, x in [([-1], [1.0]), ([1], [np.nan]), ([1, 2], [1.0])]:
        with pytest.raises(StatsError):
            fold.add(np.array(users), np.array(x), np.ones(len(x)))
    assert fold.moments is before


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 4))
def test_arms_in_one_pass_are_what_each_arm_alone_gives(seed: int, events: int, count: int) -> None:
    users, x, y = stream(seed, events, 25)
    arms = np.random.default_rng(seed).integers(0, count, events)
    together = rebuild_arms(users, arms, x, y)
    assert together == [rebuild(users[arms == arm], x[arms == arm], y[arms == arm]) for arm in range(arms.max() + 1)]
    assert rebuild_arms(users, arms, x) == together


def test_arms_without_events_and_impossible_indices() -> None:
    none = np.array([], dtype=np.int64)
    assert rebuild_arms(none, none, np.array([])) == []
    empty, one = rebuild_arms(np.array([3, 3]), np.array([1, 1]), np.array([1.0, 0.0]))
    assert (empty.n, one.n, one.sx, one.sy) == (0, 1, 1.0, 2.0)
    for users, arms, field in [([-1], [0], "users"), ([0], [-1], "arms"), ([0, 1], [0], "arms")]:
        with pytest.raises(StatsError) as caught:
            rebuild_arms(np.array(users), np.array(arms), np.ones(len(users)))
        assert caught.value.field == field
