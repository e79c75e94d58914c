"""Planned-horizon tests: the closed form, the error at any schedule, and what happens at the horizon."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from stats.crossing import crossing_probabilities, spending_boundary
from stats.errors import StatsError
from stats.horizon import (
    Hybrid,
    Reflection,
    final_critical,
    horizon_variance,
    hybrid_critical,
    information_share,
    reflection_critical,
    reflection_drift,
    reflection_p,
    reflection_power,
)


def test_critical_levels_of_the_design() -> None:
    assert reflection_critical(0.05, sided=2) == pytest.approx(2.2414, abs=1e-4)
    assert reflection_critical(0.05, sided=1) == pytest.approx(1.95996, abs=1e-5)


@pytest.mark.parametrize("looks", [1, 10, 200])
def test_the_error_is_at_most_alpha_at_any_schedule(looks: int) -> None:
    shares = np.linspace(1 / looks, 1, looks)
    upper = reflection_critical(0.05, sided=1) / np.sqrt(shares)
    error = crossing_probabilities(shares, upper, effect=0.0).sum()
    assert error <= 0.05
    assert looks < 200 or error > 0.045


def test_the_closed_form_power_is_the_limit_of_many_looks() -> None:
    drift = reflection_drift(0.05, 0.8, sided=1, looks=400)
    assert reflection_power(drift, 0.05, sided=1) == pytest.approx(0.8, abs=0.015)
    assert reflection_power(drift, 0.05, sided=1) > 0.8


@pytest.mark.parametrize(
    ("alpha", "power", "sided", "cost"), [(0.05, 0.8, 1, 1.11), (0.05, 0.9, 1, 1.11), (0.05, 0.8, 2, 1.09)]
)
def test_it_costs_about_a_tenth_more_than_one_look(alpha: float, power: float, sided: int, cost: float) -> None:
    one_look = {(0.05, 0.8, 1): 2.486, (0.05, 0.9, 1): 2.926, (0.05, 0.8, 2): 2.802}[alpha, power, sided]
    assert (reflection_drift(alpha, power, sided=sided, looks=200) / one_look) ** 2 == pytest.approx(cost, abs=0.015)


@pytest.mark.parametrize(("looks", "sided"), [(1, 1), (10, 1), (50, 2)])
def test_an_exact_last_look_spends_alpha_exactly_and_beats_obrien_fleming(looks: int, sided: int) -> None:
    shares = np.arange(1, looks + 1) / looks
    upper = reflection_critical(0.05, sided=sided) / np.sqrt(shares)
    upper[-1] = final_critical(shares[:-1], 0.05, sided=sided)
    assert crossing_probabilities(shares, upper, effect=0.0).sum() == pytest.approx(0.05 / sided, abs=1e-9)
    spent = 2 * ndtr(ndtri(0.05 / sided / 2) / np.sqrt(shares))
    spent[-1] = 0.05 / sided
    drift = -ndtri(0.05 / sided) - ndtri(0.2)
    peers = crossing_probabilities(shares, spending_boundary(shares, spent), effect=drift).sum()
    assert crossing_probabilities(shares, upper, effect=drift).sum() > peers - 1e-6


def test_an_exact_last_look_refuses_looks_at_the_horizon() -> None:
    with pytest.raises(StatsError, match="shares"):
        final_critical([0.5, 1.0], 0.05, sided=1)
    with pytest.raises(StatsError, match="information"):
        final_critical([0.5, 0.4], 0.05, sided=1)


def test_judging_before_at_and_after_the_horizon() -> None:
    plan = Reflection(0.05, horizon_variance=1.0)
    assert plan.judge(0.0, 4.0) == "continue"
    assert plan.judge(8.1, 4.0) == "reject", "z = 4.05, t = 1/4: z √t = 2.03"
    assert plan.judge(7.0, 4.0) == "continue"
    assert plan.judge(1.9, 1.0) == "inconclusive"
    assert plan.judge(2.0, 1.0) == "reject"
    assert plan.judge(1.9, 1.0, final=1.75) == "reject", "what earlier looks did not spend"
    assert plan.judge(3.0, 4.0, final=1.75) == "continue", "which counts at the horizon alone"
    assert plan.judge(-9.0, 0.5) == "inconclusive", "a harm never promotes"
    assert plan.judge(9.0, 0.0) == "continue", "no measured noise is no evidence"


def test_two_sided_rejects_both_ways() -> None:
    plan = Reflection(0.05, horizon_variance=1.0, sided=2)
    assert plan.judge(-2.3, 1.0) == plan.judge(2.3, 1.0) == "reject"
    assert reflection_p(-2.3, 1.0, 1.0, sided=2) == pytest.approx(reflection_p(2.3, 1.0, 1.0, sided=2))


def test_hybrid_has_one_ordinary_look_and_an_always_valid_rest() -> None:
    plan = Hybrid(0.05, horizon_variance=1.0, tau2=6.3)
    between = hybrid_critical(0.05, sided=1) + 0.05
    assert plan.judge(between, 1.0, final_look=True) == "reject"
    assert plan.judge(between, 1.0, final_look=False) == "continue", "the same z is nothing before the horizon"
    assert plan.judge(5.0, 1.0, final_look=False) == "reject"
    assert plan.judge(1.0, 1.0, final_look=True) == "inconclusive"
    assert plan.judge(1.0, 0.0, final_look=True) == "inconclusive"


def test_hybrid_keeps_alpha_by_simulation() -> None:
    rng = np.random.default_rng(3)
    share = np.linspace(0.05, 1, 20)
    s = (rng.standard_normal((1500, 20)) * np.sqrt(0.05)).cumsum(axis=1)
    plan = Hybrid(0.05, horizon_variance=1.0, tau2=6.3)
    rejected = [
        any(
            plan.judge(d, v, final_look=k == 19) == "reject"
            for k, (d, v) in enumerate(zip(row / share, 1 / share, strict=True))
        )
        for row in s
    ]
    assert np.mean(rejected) <= 0.055


def test_information_share_and_planned_variance() -> None:
    assert information_share(2.0, 1.0) == 0.5
    assert information_share(0.5, 1.0) == 1.0
    assert information_share(0.0, 1.0) == 0.0
    assert horizon_variance(0.01, 0.05, 0.8, sided=1) == pytest.approx(
        (0.01 / reflection_drift(0.05, 0.8, sided=1)) ** 2
    )


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: reflection_critical(0.5, sided=1), "alpha"),
        (lambda: reflection_drift(0.05, 0.04, sided=1), "power"),
        (lambda: horizon_variance(0.0, 0.05, 0.8, sided=1), "effect"),
        (lambda: information_share(1.0, 0.0), "horizon_variance"),
        (lambda: information_share(-1.0, 1.0), "variance"),
    ],
)
def test_impossible_horizons_are_refused(call, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        call()
    assert caught.value.field == field
