"""Contrasts: which way is up, what the margin does to the variance, and the floor of a small arm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.contrast import Contrast, difference, floored, noninferiority
from stats.errors import StatsError
from stats.estimate import Estimate, mean
from stats.moments import Moments

T, C = Estimate(0.050, 4e-6, 1000), Estimate(0.052, 3e-6, 1000)


def test_noninferiority_where_more_is_better() -> None:
    contrast = noninferiority(T, C, 0.05)
    assert contrast.d == pytest.approx(0.050 - 0.95 * 0.052)
    assert contrast.variance == pytest.approx(4e-6 + 0.95**2 * 3e-6)


def test_noninferiority_where_less_is_better() -> None:
    contrast = noninferiority(T, C, 0.10, increasing=False)
    assert contrast.d == pytest.approx(1.10 * 0.052 - 0.050)
    assert contrast.variance == pytest.approx(4e-6 + 1.10**2 * 3e-6)


def test_margin_zero_is_the_difference() -> None:
    assert noninferiority(T, C, 0) == difference(T, C)
    assert noninferiority(T, C, 0, increasing=False) == difference(T, C, increasing=False)


def test_harm_is_the_same_evidence_reversed() -> None:
    contrast = difference(T, C)
    assert contrast.harm == Contrast(-contrast.d, contrast.variance)


@pytest.mark.parametrize("increasing", [True, False])
def test_polarity_a_planted_improvement_is_positive_and_a_planted_harm_is_not(increasing: bool) -> None:
    """Catches swapped arms and a wrong sign: a treatment with 20 % more (or less) of the metric."""
    rng = np.random.default_rng(5)
    control = mean(Moments.from_values(rng.exponential(1.0, 4000)))
    more = mean(Moments.from_values(rng.exponential(1.2, 4000)))
    less = mean(Moments.from_values(rng.exponential(0.8, 4000)))
    assert control is not None
    assert more is not None
    assert less is not None
    better, worse = (more, less) if increasing else (less, more)
    for margin in (0.0, 0.05):
        assert noninferiority(better, control, margin, increasing=increasing).d > 0
        assert noninferiority(worse, control, margin, increasing=increasing).d < 0
        assert noninferiority(control, better, margin, increasing=increasing).d < 0, "arms are not interchangeable"


def test_a_wider_margin_is_easier() -> None:
    for increasing in (True, False):
        d = [noninferiority(T, C, m, increasing=increasing).d for m in (0, 0.01, 0.05, 0.2)]
        assert d == sorted(d)


def test_the_small_arm_takes_the_large_arms_variance_per_user() -> None:
    small, large = Estimate(1.0, 1e-4, 100), Estimate(1.0, 9e-5, 1900)
    t, c = floored(small, large)
    assert (t.value, t.n, c) == (1.0, 100, large)
    assert t.variance == pytest.approx(9e-5 * 19)
    c2, t2 = floored(large, small)
    assert (c2, t2) == (large, t)


def test_the_floor_never_lowers_and_leaves_near_equal_arms_alone() -> None:
    wild, calm = Estimate(1.0, 1.0, 100), Estimate(1.0, 1e-9, 1900)
    assert floored(wild, calm) == (wild, calm)
    equal = (Estimate(1.0, 1e-9, 500), Estimate(1.0, 1e-3, 1000))
    assert floored(*equal) == equal


@given(st.integers(2, 10_000), st.integers(2, 10_000), st.floats(1e-9, 1), st.floats(1e-9, 1))
def test_the_floor_is_idempotent_and_monotone(n_t: int, n_c: int, v_t: float, v_c: float) -> None:
    once = floored(Estimate(1.0, v_t, n_t), Estimate(1.0, v_c, n_c))
    assert floored(*once) == once
    assert once[0].variance >= v_t
    assert once[1].variance >= v_c


def test_contrasts_apply_the_floor() -> None:
    small, large = Estimate(1.0, 0.0, 50), Estimate(1.0, 1e-4, 1000)
    assert difference(small, large).variance == pytest.approx(1e-4 * 20 + 1e-4)


@pytest.mark.parametrize("margin", [-0.01, math.nan, math.inf, 1.0, 1.5])
def test_an_impossible_margin_is_refused(margin: float) -> None:
    with pytest.raises(StatsError, match="margin_rel"):
        noninferiority(T, C, margin)


def test_a_metric_that_should_fall_may_have_a_margin_above_one() -> None:
    assert noninferiority(T, C, 1.5, increasing=False).d > 0
