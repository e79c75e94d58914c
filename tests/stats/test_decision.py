"""Thresholds: promotion needs no split of alpha, rollback does, and nothing is judged before the burn-in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stats.decision import burned_in, promote_threshold, rollback_threshold
from stats.errors import StatsError
from stats.moments import Moments


def test_thresholds() -> None:
    assert promote_threshold(0.05) == pytest.approx(math.log(20))
    assert rollback_threshold(0.05, 4) == pytest.approx(math.log(80))


def test_the_smaller_arm_decides_when_the_burn_in_is_over() -> None:
    big, few_users = Moments.from_values(np.ones(1000)), Moments.from_values(np.ones(399))
    few_events = Moments.from_values(np.array([1.0] * 99 + [0.0] * 901))
    assert burned_in(big, big)
    assert not burned_in(big, few_users)
    assert not burned_in(few_events, big)
    assert burned_in(few_users, few_events, users=10, events=5)


def test_bad_levels_are_refused() -> None:
    with pytest.raises(StatsError, match="alpha"):
        promote_threshold(1.0)
    with pytest.raises(StatsError, match="guardrails"):
        rollback_threshold(0.05, 0)
