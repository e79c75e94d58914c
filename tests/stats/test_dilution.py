"""Triggered analysis: the same hypothesis as the plain analysis, far less noise, and a variance that is true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stats.contrast import Contrast, noninferiority
from stats.dilution import Triggered, diluted
from stats.errors import StatsError
from stats.estimate import Estimate, mean, ratio
from stats.mixture import log_e_one_sided
from stats.moments import Moments


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
