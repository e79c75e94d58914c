"""Strata: drift cannot masquerade as an effect, weights follow the overlap, equal splits lose nothing."""

from __future__ import annotations

import numpy as np
import pytest

from stats.contrast import difference
from stats.errors import StatsError
from stats.estimate import Estimate, mean
from stats.moments import Moments
from stats.strata import stratified


def test_one_stratum_is_itself() -> None:
    pair = (Estimate(1.0, 0.01, 100), Estimate(1.1, 0.02, 120))
    assert stratified([pair]) == pair


def test_weights_follow_the_overlap() -> None:
    t = [Estimate(1.0, 0.1, 50), Estimate(2.0, 0.1, 500)]
    c = [Estimate(1.0, 0.1, 50), Estimate(2.0, 0.1, 500)]
    pooled = stratified(list(zip(t, c, strict=True)))
    assert pooled is not None
    assert pooled[0].value == pytest.approx((25 * 1.0 + 250 * 2.0) / 275)
    assert pooled[0].variance == pytest.approx(0.1 * ((25 / 275) ** 2 + (250 / 275) ** 2))


def test_strata_with_an_empty_arm_compare_nothing() -> None:
    pair = (Estimate(1.0, 0.01, 100), Estimate(1.1, 0.02, 120))
    assert stratified([pair, (None, pair[1]), (pair[0], None)]) == pair
    assert stratified([(None, None)]) is None
    with pytest.raises(StatsError, match="strata"):
        stratified([])


def drifting_ramp(rng: np.random.Generator) -> tuple[float, float]:
    """(stratified z, pooled z) of an A/A ramp 5 → 50 % whose level drifts upwards."""
    phases = [(0.05, 1.0), (0.10, 1.3), (0.25, 0.9), (0.50, 1.5)]
    arms: list[tuple[Moments, Moments]] = []
    for share, level in phases:
        n_t = int(4000 * share)
        arms.append(tuple(Moments.from_values(rng.exponential(level, n)) for n in (n_t, 4000 - n_t)))
    pooled = difference(
        mean(sum((t for t, _ in arms), Moments.empty())), mean(sum((c for _, c in arms), Moments.empty()))
    )
    strata = stratified([(mean(t), mean(c)) for t, c in arms])
    assert strata is not None
    clean = difference(*strata)
    return clean.d / clean.variance**0.5, pooled.d / pooled.variance**0.5


def test_planted_error_pooling_over_phases_invents_an_effect_that_strata_do_not() -> None:
    z = np.array([drifting_ramp(np.random.default_rng(seed)) for seed in range(200)])
    assert np.abs(z[:, 0].mean()) < 0.25
    assert 0.7 < z[:, 0].std() < 1.2
    assert z[:, 1].mean() > 3


def test_the_floor_works_inside_each_stratum() -> None:
    small, large = Estimate(1.0, 0.0, 50), Estimate(1.0, 1e-4, 1000)
    pooled = stratified([(small, large)])
    assert pooled is not None
    assert pooled[0].variance == pytest.approx(1e-4 * 20)
