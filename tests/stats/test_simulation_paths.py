"""The simulation's arrays are the same statistics as the functions that production calls, one run at a time."""

from __future__ import annotations

import numpy as np
import pytest

from stats.contrast import difference, noninferiority
from stats.estimate import Estimate, mean, ratio
from stats.moments import Moments
from stats.simulation import mismatch, ramp
from stats.simulation.paths import Sums, contrast, draw
from stats.simulation.worlds import Clicks, Pool, Spend, pool
from stats.srm import log_e_srm
from stats.strata import stratified

SMALL = 1 << 14


def clicks(rng: np.random.Generator, users: int) -> Pool:
    y = rng.poisson(20, users) + 1
    return Pool(rng.binomial(y, 0.1).astype(np.float32), y.astype(np.float32))


def sums(x: np.ndarray, y: np.ndarray) -> Sums:
    return Sums(np.array([x.size]), *(np.array([[value]]) for value in (x.sum(), y.sum(), x @ x, y @ y, x @ y)))


def test_values_variances_and_contrasts_are_those_of_production() -> None:
    rng = np.random.default_rng(1)
    arms = [(rng.poisson(2.0, n).astype(float), rng.poisson(20.0, n) + 1.0) for n in (40, 300)]
    t, c = (ratio(Moments.from_values(x, y)) for x, y in arms)
    assert t is not None
    assert c is not None
    rt, vt = sums(*arms[0]).estimate()
    assert (rt[0, 0], vt[0, 0]) == pytest.approx((t.value, t.variance), rel=1e-9)
    d, v = contrast(sums(*arms[0]), sums(*arms[1]), 0.03)
    exact = noninferiority(t, c, 0.03)
    assert (d[0, 0], v[0, 0]) == pytest.approx((exact.d, exact.variance), rel=1e-9), "with the floor of a small arm"
    unfloored = contrast(sums(*arms[0]), sums(*arms[1]), floor=False)[1][0, 0]
    assert unfloored == pytest.approx(t.variance + c.variance, rel=1e-9)


def test_a_mean_is_a_ratio_to_one() -> None:
    x = np.random.default_rng(2).lognormal(size=500)
    exact = mean(Moments.from_values(x))
    assert exact is not None
    value, variance = sums(x, np.ones(500)).estimate()
    assert (value[0, 0], variance[0, 0]) == pytest.approx((exact.value, exact.variance), rel=1e-9)


def test_looks_are_cumulative_and_seeded() -> None:
    population = clicks(np.random.default_rng(3), SMALL)
    looks = np.array([10, 25, 100])
    drawn = draw(population, looks, 7, np.random.default_rng(4))
    again = draw(population, looks, 7, np.random.default_rng(4))
    assert drawn.x.shape == (7, 3)
    assert (np.diff(drawn.y, axis=1) > 0).all()
    assert (drawn.xx == again.xx).all()
    assert drawn.y[:, -1].mean() == pytest.approx(100 * 21, rel=0.05)


@pytest.mark.parametrize("world", [Clicks(), Clicks(ctr=0.004, concentration=70.0), Spend(2.0, 0.99)])
@pytest.mark.parametrize("lift", [0.0, 0.1, -0.1])
def test_a_pool_holds_its_lift_exactly(world: Clicks | Spend, lift: float) -> None:
    changed = pool(world, lift, SMALL).value / pool(world, 0.0, SMALL).value - 1
    assert changed == pytest.approx(lift, abs=2e-3 if isinstance(world, Clicks) and world.ctr < 0.01 else 1e-4)


def test_strata_and_sample_ratio_are_those_of_production() -> None:
    rng = np.random.default_rng(5)
    population = clicks(rng, SMALL)
    phases = [
        (draw(population, np.array([20, 40]), 1, rng), draw(population, np.array([30, 70 * k]), 1, rng)) for k in (1, 2)
    ]
    pairs = []
    for t, c in phases:
        (rt, vt), (rc, vc) = t.estimate(), c.estimate()
        pairs.append((Estimate(rt[0, -1], vt[0, -1], int(t.n[-1])), Estimate(rc[0, -1], vc[0, -1], int(c.n[-1]))))
    pooled = stratified(pairs)
    assert pooled is not None
    exact = difference(*pooled)
    d, v = ramp.stratified(phases)
    assert (d[0, -1], v[0, -1]) == pytest.approx((exact.d, exact.variance), rel=1e-12)
    assert mismatch.log_e(np.array([480]), np.array([1000]), 2500.0)[0] == pytest.approx(
        log_e_srm([480, 520], [0.5, 0.5], concentration=2500.0), abs=1e-9
    )
