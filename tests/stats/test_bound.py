"""The bound: the margin at which the gate's own e-value reaches its threshold, on the harmful side of the estimate."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.bound import relative_bound
from stats.contrast import noninferiority
from stats.errors import StatsError
from stats.estimate import Estimate
from stats.mixture import log_e_one_sided, tau2_for
from stats.relative import relative_interval

ALPHA = 0.05
T, C = Estimate(0.051, 1.0e-6, 4000), Estimate(0.050, 1.2e-6, 4000)
TAU2 = tau2_for(2.2e-6, ALPHA, sided=1)


@pytest.mark.parametrize(("increasing", "margin_of"), [(True, lambda r: -r), (False, lambda r: r)])
def test_a_margin_is_proved_exactly_when_the_bound_is_inside_it(increasing: bool, margin_of) -> None:
    bound = relative_bound(T, C, TAU2, ALPHA, increasing=increasing)
    for margin, proved in ((margin_of(bound) + 1e-9, True), (margin_of(bound) - 1e-9, False)):
        contrast = noninferiority(T, C, margin, increasing=increasing)
        assert (log_e_one_sided(contrast.d, contrast.variance, TAU2) > math.log(1 / ALPHA)) is proved


@given(st.floats(0.5, 2), st.floats(1e-8, 1e-2), st.floats(1e-8, 1e-2), st.floats(1e-8, 1.0), st.floats(1e-4, 0.49))
def test_every_finite_bound_is_a_root(t: float, v_t: float, v_c: float, tau2: float, alpha: float) -> None:
    treatment, control = Estimate(t, v_t, 100), Estimate(1.0, v_c, 100)
    for increasing, sign in ((True, 1), (False, -1)):
        bound = relative_bound(treatment, control, tau2, alpha, increasing=increasing)
        assert sign * bound < sign * (t - 1)
        if math.isfinite(bound):
            q = 1 + bound
            log_e = log_e_one_sided(sign * (t - q), v_t + q * q * v_c, tau2)
            assert log_e == pytest.approx(math.log(1 / alpha), rel=1e-6)


def test_the_bound_is_inside_the_two_sided_limits_on_its_own_side() -> None:
    low, high = relative_interval(T, C, TAU2, ALPHA)
    assert low < relative_bound(T, C, TAU2, ALPHA) < T.value / C.value - 1
    assert T.value / C.value - 1 < relative_bound(T, C, TAU2, ALPHA, increasing=False) < high


@pytest.mark.parametrize(
    ("t", "c"),
    [
        (T, Estimate(0.0, 1.2e-6, 4000)),
        (T, Estimate(-0.05, 1.2e-6, 4000)),
        (Estimate(0.05, 0.0, 9), Estimate(0.05, 0.0, 9)),
        (Estimate(0.0, 0.0, 4000), C),
        (Estimate(1.0, 0.5, 9), Estimate(1.0, 0.5, 9)),
    ],
)
def test_nothing_ruled_out_is_infinite_on_the_harmful_side(t: Estimate, c: Estimate) -> None:
    assert relative_bound(t, c, 1.0, ALPHA) == -math.inf
    assert relative_bound(t, c, 1.0, ALPHA, increasing=False) == math.inf


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(StatsError, match="alpha"):
        relative_bound(T, C, TAU2, alpha)
