"""Relative limits: the margins at which the gate's own contrast ends at zero, and infinity where that never happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stats.contrast import noninferiority
from stats.errors import StatsError
from stats.estimate import Estimate, mean
from stats.mixture import confidence_sequence, tau2_for
from stats.moments import Moments
from stats.relative import relative_interval

T, C = Estimate(0.051, 1.0e-6, 4000), Estimate(0.050, 1.2e-6, 4000)
TAU2 = tau2_for(2.2e-6, 0.05, sided=2)


def test_the_limits_are_where_the_contrast_ends_at_zero() -> None:
    low, high = relative_interval(T, C, TAU2, 0.05)
    assert low < 0.02 < high
    margin = noninferiority(T, C, -low)
    assert confidence_sequence(margin.d, margin.variance, TAU2, 0.05)[0] == pytest.approx(0, abs=1e-12)
    above = noninferiority(T, C, high, increasing=False)
    assert confidence_sequence(above.d, above.variance, TAU2, 0.05)[0] == pytest.approx(0, abs=1e-12)


@settings(max_examples=60)
@given(st.floats(0.5, 2), st.floats(1e-5, 1e-2), st.floats(1e-5, 1e-2), st.floats(1e-6, 1.0))
def test_every_finite_limit_is_a_root_and_brackets_the_estimate(t: float, v_t: float, v_c: float, tau2: float) -> None:
    treatment, control = Estimate(t, v_t, 100), Estimate(1.0, v_c, 100)
    low, high = relative_interval(treatment, control, tau2, 0.05)
    assert low < t - 1 < high
    for limit in (low, high):
        if math.isfinite(limit):
            q = 1 + limit
            edges = confidence_sequence(t - q, v_t + q * q * v_c, tau2, 0.05)
            assert min(abs(edge) for edge in edges) == pytest.approx(0, abs=1e-9)


def test_the_interval_is_wider_upwards() -> None:
    low, high = relative_interval(Estimate(1.0, 0.004, 100), Estimate(1.0, 0.004, 100), 0.06, 0.05)
    assert high > -low > 0


def test_a_control_that_may_be_zero_gives_infinite_limits() -> None:
    low, high = relative_interval(Estimate(1.0, 0.01, 50), Estimate(0.1, 0.01, 50), 0.1, 0.05)
    assert high == math.inf
    assert low < 9


@pytest.mark.parametrize(
    ("t", "c"),
    [
        (Estimate(1.0, 0.1, 9), Estimate(0.0, 0.1, 9)),
        (Estimate(1, 0, 9), Estimate(1, 0, 9)),
        (Estimate(0.0, 0.0, 9), Estimate(1.0, 0.1, 9)),
    ],
)
def test_nothing_known_is_the_whole_line(t: Estimate, c: Estimate) -> None:
    assert relative_interval(t, c, 1.0, 0.05) == (-math.inf, math.inf)


def test_the_true_relative_effect_is_covered_at_every_look() -> None:
    """A planted effect of -10 %, 40 looks: at most 5 % of runs may ever exclude it."""
    rng = np.random.default_rng(17)
    tau2 = tau2_for(2 * 1.0 / 400, 0.05, sided=2)
    missed = 0
    for _ in range(150):
        t, c = rng.exponential(0.9, (400,)), rng.exponential(1.0, (400,))
        for n in range(40, 401, 40):
            treatment, control = mean(Moments.from_values(t[:n])), mean(Moments.from_values(c[:n]))
            assert treatment is not None
            assert control is not None
            low, high = relative_interval(treatment, control, tau2, 0.05)
            if not low < -0.1 < high:
                missed += 1
                break
    assert missed <= 12, f"{missed} of 150 runs excluded the truth"


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(StatsError, match="alpha"):
        relative_interval(T, C, TAU2, 0.0)
    with pytest.raises(StatsError, match="tau2"):
        relative_interval(T, C, 0.0, 0.05)
