"""Capping: a limit from before the experiment, never one person's value, and less variance on heavy tails."""

from __future__ import annotations

import numpy as np
import pytest

from stats.capping import cap_at, capped
from stats.errors import StatsError


def test_the_cap_is_the_pre_period_quantile() -> None:
    assert cap_at(np.arange(1, 2001), 0.99) == 1981


def test_capping_cuts_only_the_tail() -> None:
    assert capped([1.0, 5.0, 100.0], 10.0).tolist() == [1.0, 5.0, 10.0]


def test_a_heavy_tail_loses_most_of_its_variance() -> None:
    before, after = np.random.default_rng(1).lognormal(0, 2, (2, 50_000))
    assert capped(after, cap_at(before, 0.99)).var() < 0.5 * after.var()


@pytest.mark.parametrize(
    ("values", "q", "field"),
    [
        (np.arange(500.0), 0.99, "pre_period"),
        (np.zeros(5000), 0.99, "quantile"),
        (np.arange(5000.0), 1.0, "quantile"),
        (np.array([np.nan]), 0.99, "pre_period"),
    ],
)
def test_an_unusable_cap_is_refused(values: np.ndarray, q: float, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        cap_at(values, q)
    assert caught.value.field == field


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(StatsError, match="cap"):
        capped([1.0], 0.0)
