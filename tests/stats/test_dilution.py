"""Triggered analysis: the same hypothesis as the plain analysis, far less noise, and a variance that is true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stats.contrast import Contrast, noninferiority
from stats.dilution import Triggered, diluted, diluted_interval, triggered_share
from stats.errors import StatsError
from stats.estimate import Estimate, mean, ratio
from stats.mixture import log_e_one_sided
from stats.moments import Moments
from stats.relative import half_width


def experiment(rng: np.random.Generator, n: int, lift: float, trigger: float) -> tuple[Contrast, Contrast, Triggered]:
    """(diluted, plain) contrasts at a margin of 5 %: a share of users is triggered, only they can react."""
    hit_t, hit_c = rng.random(n) < trigger, rng.random(n) < trigger
    x_t = rng.poisson(2.0, n) * np.where(hit_t, 1 + lift, 1.0)
    x_c = rng.poisson(2.0, n).astype(float)

    def estimate(values: np.ndarray) -> Estimate:
        found = mean(Moments.from_values(values))
        assert found is not None
        return found

    share = ratio(Moments.from_values(np.concatenate([hit_t, hit_c]).astype(float)))
    assert share is not None
    rest = estimate(np.concatenate([x_t[~hit_t], x_c[~hit_c]]))
    triggered = Triggered(estimate(x_t[hit_t]), estimate(x_c[hit_c]), rest, share)
    return diluted(triggered, 0.05), noninferiority(estimate(x_t), estimate(x_c), 0.05), triggered


def test_it_estimates_what_the_plain_analysis_estimates_with_a_fraction_of_the_variance() -> None:
    rng = np.random.default_rng(1)
    pairs = [experiment(rng, 2000, 0.2, 0.1) for _ in range(400)]
    d = np.array([(a.d, b.d) for a, b, _ in pairs])
    v = np.array([(a.variance, b.variance) for a, b, _ in pairs])
    truth = 2.0 * 0.1 * 0.2 + 0.05 * 2.0
    assert d.mean(axis=0) == pytest.approx([truth, truth], abs=0.01)
    assert v[:, 0].mean() == pytest.approx(d[:, 0].var(), rel=0.2)
    assert v[:, 0].mean() < 0.15 * v[:, 1].mean()


def test_planted_error_an_undiluted_effect_is_not_the_effect_on_everybody() -> None:
    _, _, triggered = experiment(np.random.default_rng(2), 40_000, 0.3, 0.05)
    among_triggered = triggered.treatment.value / triggered.control.value - 1
    assert among_triggered == pytest.approx(0.3, abs=0.05)
    assert triggered.relative_overall == pytest.approx(0.3 * 0.05, rel=0.2)


def test_polarity_in_both_directions() -> None:
    worse, better = Estimate(0.9, 1e-5, 500), Estimate(1.1, 1e-5, 500)
    rest, share = Estimate(1.0, 1e-5, 9000), Estimate(0.1, 1e-6, 10_000)
    control = Estimate(1.0, 1e-5, 500)
    for increasing in (True, False):
        up = diluted(Triggered(better, control, rest, share), 0.0, increasing=increasing)
        down = diluted(Triggered(worse, control, rest, share), 0.0, increasing=increasing)
        assert (up.d > 0) == increasing
        assert (down.d > 0) != increasing
    harm = diluted(Triggered(worse, control, rest, share), 0.0).harm
    assert log_e_one_sided(harm.d, harm.variance, 1e-6) > math.log(100)


def test_everybody_triggered_is_the_plain_contrast() -> None:
    t, c = Estimate(1.02, 2e-5, 500), Estimate(1.0, 1e-5, 500)
    everybody = Triggered(t, c, Estimate(5.0, 1.0, 1), Estimate(1.0, 0.0, 1000))
    for increasing in (True, False):
        got, want = diluted(everybody, 0.05, increasing=increasing), noninferiority(t, c, 0.05, increasing=increasing)
        assert (got.d, got.variance) == (pytest.approx(want.d), pytest.approx(want.variance))


def test_impossible_shares_and_margins_are_refused() -> None:
    e = Estimate(1.0, 1.0, 5)
    with pytest.raises(StatsError, match="share"):
        Triggered(e, e, e, Estimate(0.0, 0.0, 5))
    with pytest.raises(StatsError, match="margin_rel"):
        diluted(Triggered(e, e, e, Estimate(0.5, 0.0, 5)), 1.0)


def test_diluted_limits_are_where_the_diluted_contrast_is_just_rejected() -> None:
    rng, tau2 = np.random.default_rng(6), 1e-3
    for lift in (-0.3, 0.0, 0.3):
        _, _, triggered = experiment(rng, 4000, lift, 0.1)
        low, high = diluted_interval(triggered, tau2, 0.05)
        assert low < triggered.relative_overall < high
        for r in (low, high):
            contrast = diluted(triggered, -r) if r <= 0 else diluted(triggered, r, increasing=False)
            assert abs(contrast.d) == pytest.approx(half_width(contrast.variance, tau2, 0.05), rel=1e-6)


def test_diluted_limits_hold_the_truth_at_every_look() -> None:
    """300 runs with looks on growing samples; a true effect of 0.2 on a tenth of the users is one of 0.02 on all."""
    rng, misses = np.random.default_rng(8), 0
    for _ in range(300):
        hit = rng.random((2, 3000)) < 0.1
        x = rng.poisson(2.0, (2, 3000)) * np.where(hit & np.array([[True], [False]]), 1.2, 1.0)
        missed = False
        for n in (300, 600, 1200, 2000, 3000):
            (t_hit, c_hit), (t, c) = hit[:, :n], x[:, :n]
            parts = [t[t_hit], c[c_hit], np.concatenate([t[~t_hit], c[~c_hit]])]
            moments = [Moments.from_values(part) for part in parts]
            share = triggered_share(moments[0] + moments[1], moments[2])
            estimates = [mean(part) for part in moments]
            assert share is not None
            assert all(estimates)
            low, high = diluted_interval(Triggered(*estimates, share), 1e-3, 0.05)  # type: ignore[arg-type] # none is None
            missed |= not low <= 0.02 <= high
        misses += missed
    assert misses <= 15 + 2.6 * math.sqrt(15)


def test_the_share_of_the_denominator_is_the_ratio_over_all_users() -> None:
    rng = np.random.default_rng(9)
    y, hit = rng.geometric(0.05, 500).astype(float), rng.random(500) < 0.3
    found = triggered_share(*(Moments.from_values(np.zeros(part.sum()), y[part]) for part in (hit, ~hit)))
    expected = ratio(Moments.from_values(y * hit, y))
    assert found is not None
    assert expected is not None
    assert (found.value, found.variance, found.n) == pytest.approx((expected.value, expected.variance, expected.n))
    assert triggered_share(Moments.empty(), Moments.empty()) is None


def test_limits_of_what_is_unknown_are_infinite_and_impossible_levels_are_refused() -> None:
    nothing, e = Estimate(0.0, 0.0, 5), Estimate(1.0, 1.0, 5)
    silent = Triggered(nothing, nothing, nothing, Estimate(0.5, 0.0, 5))
    assert diluted_interval(silent, 1.0, 0.05) == (-math.inf, math.inf)
    known = Triggered(e, e, e, Estimate(0.5, 0.0, 5))
    with pytest.raises(StatsError, match="tau2"):
        diluted_interval(known, 0.0, 0.05)
    with pytest.raises(StatsError, match="alpha"):
        diluted_interval(known, 1.0, 1.0)
