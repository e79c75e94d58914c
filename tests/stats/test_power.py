"""Power: the design's sizes, their inverses, and the promise kept by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import NormalIndPower

from stats.errors import StatsError
from stats.estimate import Estimate
from stats.mixture import log_e_one_sided, optimal_x
from stats.power import (
    Plan,
    days,
    days_to_go,
    detectable_effect,
    relative_noise,
    slowest,
    supportable_margin,
    users_per_arm,
)

NOISE = 3.42


@pytest.mark.parametrize(("margin", "users"), [(0.05, 17e3), (0.02, 106e3), (0.01, 423e3), (0.005, 1.7e6)])
def test_users_per_arm_of_the_design(margin: float, users: float) -> None:
    """The design's rounded figures take both arms' noise as equal; ours knows that the margin shrinks the control's."""
    assert users_per_arm(NOISE, margin, Plan("fixed")) == pytest.approx(users, rel=0.06)


def test_a_superiority_test_is_statsmodels_z_test() -> None:
    effect, noise = 0.03, 2.0
    expected = NormalIndPower().solve_power(effect / math.sqrt(noise), alpha=0.05, power=0.8, alternative="two-sided")
    assert detectable_effect(noise, expected, Plan("fixed", sided=2)) == pytest.approx(effect, rel=1e-4)


@pytest.mark.parametrize(
    ("design", "power", "cost", "stop"),
    [
        ("reflection", 0.8, 1.12, 0.80),
        ("hybrid", 0.8, 1.09, 0.96),
        ("always_valid", 0.8, 1.79, 1.09),
        ("always_valid", 0.9, 1.68, 0.88),
    ],
)
def test_what_each_design_costs(design, power: float, cost: float, stop: float) -> None:
    """stats.md's Brownian table (400 looks) says 1.11, 1.10, 1.77, 1.67; with 100 looks a little more."""
    ratio = (Plan(design, power=power).drift / Plan("fixed", power=power).drift) ** 2
    assert ratio == pytest.approx(cost, abs=0.02)
    assert ratio * Plan(design, power=power).mean_share == pytest.approx(stop, abs=0.02)


def test_the_promised_power_is_kept_by_simulation() -> None:
    plan = Plan("always_valid", power=0.8)
    steps = np.random.default_rng(1).standard_normal((4000, 100)) / 10 + plan.drift / 100
    share = np.arange(1, 101) / 100
    log_e = log_e_one_sided(
        steps.cumsum(axis=1) / share, np.broadcast_to(1 / share, (4000, 100)), optimal_x(0.05, sided=1)
    )
    assert (log_e.max(axis=1) >= math.log(20)).mean() == pytest.approx(0.8, abs=0.025)


def test_margins_and_users_are_inverse() -> None:
    for effect in (0.0, -0.004, 0.01):
        margin = supportable_margin(NOISE, 200_000, Plan(), effect=effect)
        assert margin is not None
        assert users_per_arm(NOISE, margin, Plan(), effect=effect) == pytest.approx(200_000, rel=1e-6)


def test_hopeless_traffic_supports_no_margin() -> None:
    assert supportable_margin(NOISE, 1, Plan()) is None
    assert users_per_arm(NOISE, 0.01, Plan(), effect=-0.02) == math.inf


def test_more_guardrails_or_arms_need_more_users() -> None:
    one = users_per_arm(NOISE, 0.02, Plan())
    assert users_per_arm(NOISE, 0.02, Plan(guardrails=4)) > 1.3 * one
    assert users_per_arm(NOISE, 0.02, Plan(comparisons=3)) > 1.2 * one


def test_days_and_projection() -> None:
    assert days(10_000, 2_000, window_days=1) == 6
    assert days_to_go(variance=4.0, needed_variance=1.0, days_so_far=3.0) == pytest.approx(9.0)
    assert days_to_go(variance=0.5, needed_variance=1.0, days_so_far=3.0) == 0
    assert slowest({"ctr": 10.0, "watch": 30.0}) == ("watch", 30.0)


def test_relative_noise_of_an_estimate() -> None:
    assert relative_noise(Estimate(0.05, 3.42 * 0.05**2 / 8000, 8000)) == pytest.approx(3.42)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Plan(design="bayes"), "design"),
        (lambda: Plan(alpha=0.5), "alpha"),
        (lambda: Plan(power=0.01), "power"),
        (lambda: Plan(guardrails=0), "guardrails"),
        (lambda: users_per_arm(NOISE, 1.0, Plan()), "margin"),
        (lambda: users_per_arm(0.0, 0.1, Plan()), "noise"),
        (lambda: days(10, 0), "users_per_day"),
        (lambda: relative_noise(Estimate(0.0, 1.0, 10)), "control"),
        (lambda: slowest({}), "users"),
    ],
)
def test_impossible_plans_are_refused(call, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        call()
    assert caught.value.field == field
