"""Mixtures: the published tables, duality of e-values and limits, and the claim itself under continuous peeking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from stats.errors import StatsError
from stats.mixture import (
    confidence_sequence,
    critical_z,
    log_e_one_sided,
    log_e_two_sided,
    lower_limit,
    optimal_x,
    tau2_for,
)

effects = st.floats(-50, 50)
variances = st.floats(1e-6, 1e6)
alphas = st.floats(1e-4, 0.4)

# Critical z at shares of the planned information, one-sided.
CRITICAL = {
    0.05: {0.1: 3.63, 0.25: 3.02, 0.5: 2.82, 1: 2.77, 2: 2.79, 4: 2.86, 10: 2.99},
    0.025: {0.1: 3.86, 0.25: 3.27, 0.5: 3.09, 1: 3.04, 2: 3.06, 4: 3.13, 10: 3.24},
}


@pytest.mark.parametrize(
    ("alpha", "share", "z"), [(alpha, share, z) for alpha, row in CRITICAL.items() for share, z in row.items()]
)
def test_critical_z_of_the_design_table(alpha: float, share: float, z: float) -> None:
    assert critical_z(optimal_x(alpha, sided=1) * share, alpha) == pytest.approx(z, abs=0.0055)


def test_optimal_x_of_the_peers() -> None:
    assert optimal_x(0.05, sided=2) == pytest.approx(7.94, abs=0.005)
    assert optimal_x(0.05, sided=1) == pytest.approx(6.33, abs=0.005)
    assert optimal_x(0.025, sided=1) == optimal_x(0.05, sided=2)
    assert tau2_for(2e-6, 0.05, sided=1) == pytest.approx(6.33 * 2e-6, rel=1e-3)


def test_the_width_is_flat_around_the_optimum() -> None:
    """A planned variance that is four times off, either way, costs under 10 % of the width."""
    widths = [confidence_sequence(0.0, 1.0, optimal_x(0.05, sided=2) * f, 0.05)[1] for f in (0.25, 1, 4)]
    assert widths[1] == min(widths)
    assert max(widths) < 1.10 * widths[1]


@pytest.mark.parametrize(("d", "variance", "tau2"), [(0.3, 0.04, 0.2), (-0.3, 0.04, 0.2), (0.0, 1.0, 5.0), (4.0, 1, 1)])
def test_e_values_are_integrals_over_the_prior(d: float, variance: float, tau2: float) -> None:
    """The closed forms against numerical integration of the likelihood ratio, which share no code with them."""

    def likelihood_ratio(effect: float) -> float:
        return math.exp((d * effect - effect**2 / 2) / variance)

    def mixed(lower: float, weight: float) -> float:
        density = stats.norm(scale=math.sqrt(tau2)).pdf
        return integrate.quad(lambda t: weight * likelihood_ratio(t) * density(t), lower, 12, epsabs=1e-13)[0]

    assert log_e_two_sided(d, variance, tau2) == pytest.approx(math.log(mixed(-12, 1.0)), abs=1e-8)
    assert log_e_one_sided(d, variance, tau2) == pytest.approx(math.log(mixed(0, 2.0)), abs=1e-8)


@given(effects, variances, variances, alphas)
def test_two_sided_limits_exclude_zero_exactly_when_e_exceeds(d: float, v: float, tau2: float, alpha: float) -> None:
    log_e = log_e_two_sided(d, v, tau2)
    assume(abs(log_e - math.log(1 / alpha)) > 1e-6)
    low, high = confidence_sequence(d, v, tau2, alpha)
    assert (low > 0 or high < 0) == (log_e > math.log(1 / alpha))
    assert low <= d <= high


@given(effects, variances, variances, alphas)
def test_one_sided_limit_is_the_root_of_the_e_value(d: float, v: float, tau2: float, alpha: float) -> None:
    limit = lower_limit(d, v, tau2, alpha)
    assert limit < d
    assert log_e_one_sided(d - limit, v, tau2) == pytest.approx(math.log(1 / alpha), rel=1e-7)


@given(effects, effects, variances, variances)
def test_one_sided_evidence_grows_with_the_effect(a: float, b: float, v: float, tau2: float) -> None:
    low, high = sorted((a, b))
    assert log_e_one_sided(low, v, tau2) <= log_e_one_sided(high, v, tau2) + 1e-9


def test_polarity_of_one_sided_evidence() -> None:
    """Catches a wrong sign: clear improvement is evidence, clear harm is evidence only when read the other way."""
    assert log_e_one_sided(5.0, 1.0, 6.3) > math.log(100)
    assert log_e_one_sided(-5.0, 1.0, 6.3) < 0
    assert log_e_two_sided(-5.0, 1.0, 6.3) == log_e_two_sided(5.0, 1.0, 6.3)


def test_far_tails_stay_finite_in_logs() -> None:
    for d in (-1e4, 1e4):
        assert math.isfinite(log_e_one_sided(d, 1.0, 6.3))
    assert log_e_one_sided(-1e4, 1.0, 6.3) < -5


def test_no_measured_noise_is_no_evidence() -> None:
    assert log_e_one_sided(1.0, 0.0, 1.0) == 0
    assert log_e_two_sided(1.0, 0.0, 1.0) == 0
    assert confidence_sequence(1.0, 0.0, 1.0, 0.05) == (-math.inf, math.inf)
    assert lower_limit(1.0, 0.0, 1.0, 0.05) == -math.inf


def test_arrays_give_what_scalars_give() -> None:
    d, v = np.array([-0.1, 0.0, 0.2, 0.4]), np.array([0.02, 0.0, 0.01, 0.04])
    assert log_e_one_sided(d, v, 0.1).tolist() == [log_e_one_sided(a, b, 0.1) for a, b in zip(d, v, strict=True)]
    assert log_e_two_sided(d, v, 0.1).tolist() == [log_e_two_sided(a, b, 0.1) for a, b in zip(d, v, strict=True)]
    limits = [lower_limit(a, b, 0.1, 0.05) for a, b in zip(d, v, strict=True)]
    assert lower_limit(d, v, 0.1, 0.05) == pytest.approx(limits, rel=1e-13)
    assert isinstance(log_e_one_sided(0.1, 0.2, 0.3), float)


def brownian(drift_z: float, runs: int, looks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(estimates, variances) of runs x looks with independent increments; drift_z is the mean of z at the last look."""
    steps = np.random.default_rng(seed).standard_normal((runs, looks)) + drift_z / math.sqrt(looks)
    information = np.arange(1, looks + 1.0)
    return steps.cumsum(axis=1) / information, np.broadcast_to(1 / information, steps.shape)


def rejections(drift_z: float, tau2: object, seed: int = 1) -> float:
    d, v = brownian(drift_z, 4000, 200, seed)
    return float((log_e_one_sided(d, v, tau2).max(axis=1) >= math.log(20)).mean())


def test_peeking_at_every_look_stays_below_alpha_and_a_z_test_does_not() -> None:
    tau2 = tau2_for(1 / 200, 0.05, sided=1)
    d, v = brownian(0.0, 4000, 200, 1)
    assert rejections(0.0, tau2) <= 0.05
    assert rejections(-2.0, tau2) <= 0.005, "the whole null, not only its edge"
    assert (log_e_two_sided(d, v, tau2).max(axis=1) >= math.log(20)).mean() <= 0.05
    assert (d / np.sqrt(v) > 1.645).any(axis=1).mean() > 0.25, "planted: peeking without correction"


def test_planted_error_refitting_tau_at_each_look_breaks_the_guarantee() -> None:
    """Looks evenly spaced in log information, from 1 to a million: the effect that flatters the present is too easy."""
    information = np.geomspace(1, 1e6, 300)
    steps = np.sqrt(np.diff(information, prepend=0)) * np.random.default_rng(2).standard_normal((4000, 300))
    d, v = steps.cumsum(axis=1) / information, np.broadcast_to(1 / information, steps.shape)
    refitted = np.maximum(d * d - v, 1e-12)
    assert (log_e_two_sided(d, v, refitted).max(axis=1) >= math.log(20)).mean() > 0.06
    assert (log_e_two_sided(d, v, 8e-3).max(axis=1) >= math.log(20)).mean() <= 0.05


def test_an_effect_is_found() -> None:
    assert rejections(4.0, tau2_for(1 / 200, 0.05, sided=1)) > 0.85


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: log_e_one_sided(0.0, -1.0, 1.0), "variance"),
        (lambda: log_e_two_sided(math.nan, 1.0, 1.0), "d"),
        (lambda: log_e_two_sided(0.0, 1.0, 0.0), "tau2"),
        (lambda: confidence_sequence(0.0, 1.0, 1.0, 1.0), "alpha"),
        (lambda: lower_limit(0.0, 1.0, 1.0, 0.5), "alpha"),
        (lambda: optimal_x(0.5, sided=1), "alpha"),
        (lambda: critical_z(0.0, 0.05), "x"),
        (lambda: tau2_for(0.0, 0.05, sided=2), "planned_variance"),
    ],
)
def test_impossible_arguments_are_refused_with_the_field(call, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        call()
    assert caught.value.field == field
