"""How long an experiment takes: users per arm, days, the effect or margin that some traffic can support.

Sizes come from one number about the metric, its relative noise c² = n V_C / R_C² (the squared coefficient of variation
of a user), and one about the test, the drift: the mean of z that it needs at its end for the wished power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from stats.crossing import crossing_probabilities, expected_stop
from stats.errors import StatsError
from stats.estimate import Estimate
from stats.horizon import PLANNED_LOOKS, Sided, hybrid_critical, reflection_critical
from stats.mixture import critical_z, optimal_x

Array = NDArray[np.float64]
Design = Literal["fixed", "reflection", "hybrid", "always_valid"]
_FIRST_SHARE = 0.01  # looks begin at 1 % of the planned information


@dataclass(frozen=True, slots=True)
class Plan:
    """What a test is to achieve: its design, its alpha, its power, and whether it has one side or two.

    guardrails: all of them must be proved, so each is sized at power 1 - (1 - power) / guardrails.
    comparisons: treatments compared with one control (A/B/n); alpha is divided by it.
    """

    design: Design = "always_valid"
    alpha: float = 0.05
    power: float = 0.8
    sided: Sided = 1
    guardrails: int = 1
    comparisons: int = 1

    def __post_init__(self) -> None:
        if self.design not in get_args(Design):
            raise StatsError("design", f"must be one of {', '.join(get_args(Design))}, got {self.design!r}")
        if not 0 < self.alpha < 0.5:
            raise StatsError("alpha", f"must lie strictly between 0 and 0.5, got {self.alpha}")
        if not self.alpha < self.power < 1:
            raise StatsError("power", f"must lie between alpha and 1, got {self.power}")
        if self.guardrails < 1 or self.comparisons < 1:
            raise StatsError("guardrails", "guardrails and comparisons are counted from 1")

    @property
    def drift(self) -> float:
        """Mean of z at the largest information, for this power."""
        return drift_for(self.design, *self._levels, self.sided)

    @property
    def mean_share(self) -> float:
        """Mean information at the decision, as a share of the largest, when the effect is as planned."""
        looks = _looks()
        crossed = crossing_probabilities(looks, _boundary(self.design, self._levels[0], self.sided), effect=self.drift)
        return expected_stop(looks, crossed)

    @property
    def _levels(self) -> tuple[float, float]:
        return self.alpha / self.comparisons, 1 - (1 - self.power) / self.guardrails


@lru_cache(maxsize=512)
def drift_for(design: Design, alpha: float, power: float, sided: Sided) -> float:
    """Mean of z at the end of the test at which it rejects with this probability, looking 100 times on the way."""
    if design == "fixed":
        return float(-ndtri(alpha / sided) - ndtri(1 - power))
    looks, upper = _looks(), _boundary(design, alpha, sided)
    return float(brentq(lambda d: crossing_probabilities(looks, upper, effect=d).sum() - power, 0.0, 9.0, xtol=1e-8))


def relative_noise(control: Estimate) -> float:
    """c² = n V / R²: what one user adds to relative noise. Raises StatsError when the control's value is 0."""
    if control.value == 0:
        raise StatsError("control", "a relative effect needs a control value other than 0")
    return control.n * control.variance / control.value**2


def users_per_arm(noise: float, margin: float, plan: Plan, *, effect: float = 0.0) -> float:
    """Users per arm that prove non-inferiority at `margin` (0: superiority) when the true relative effect is `effect`.

    n = c² ((1 + effect)² + (1 - margin)²) drift² / (margin + effect)²; noise is taken to scale with the value. Infinite
    when the effect is on H0's side.
    """
    _positive("noise", noise)
    if not 0 <= margin < 1:
        raise StatsError("margin", f"must be 0 or more and below 1, got {margin}")
    distance = margin + effect
    if distance <= 0:
        return math.inf
    return noise * ((1 + effect) ** 2 + (1 - margin) ** 2) * (plan.drift / distance) ** 2


def supportable_margin(noise: float, users: float, plan: Plan, *, effect: float = 0.0) -> float | None:
    """The smallest margin that this many users per arm can prove; None when even a margin of 100 % is out of reach."""
    _positive("users", users)

    def excess(margin: float) -> float:
        return users_per_arm(noise, margin, plan, effect=effect) - users

    low, high = max(0.0, -effect) + 1e-9, 1 - 1e-9
    if excess(high) > 0:
        return None
    return low if excess(low) <= 0 else float(brentq(excess, low, high, xtol=1e-10))


def detectable_effect(noise: float, users: float, plan: Plan) -> float:
    """The relative effect that this many users per arm find with the test's power: the MDE, c √(2 / n) × drift."""
    _positive("noise", noise)
    _positive("users", users)
    return math.sqrt(2 * noise / users) * plan.drift


def days(users: float, users_per_day: float, *, window_days: float = 0.0) -> float:
    """Days until this many users per arm have closed their exposure windows; users_per_day: new users per arm."""
    _positive("users_per_day", users_per_day)
    return users / users_per_day + window_days


def days_to_go(variance: float, needed_variance: float, days_so_far: float) -> float:
    """Days until the information 1 / needed_variance is there, if it goes on growing as it did; 0 when it is."""
    _positive("variance", variance)
    _positive("needed_variance", needed_variance)
    _positive("days_so_far", days_so_far)
    return max(0.0, days_so_far * (variance / needed_variance - 1))


def slowest(users: Mapping[str, float]) -> tuple[str, float]:
    """The metric that needs the most users: the one that binds a release in which all must be proved."""
    if not users:
        raise StatsError("users", "no metric to compare")
    return max(users.items(), key=lambda item: item[1])


def _looks() -> Array:
    return np.linspace(_FIRST_SHARE, 1.0, PLANNED_LOOKS)


def _boundary(design: Design, alpha: float, sided: Sided) -> Array:
    """Critical z at each planned look, in the direction of the effect."""
    looks = _looks()
    final = np.where(np.arange(looks.size) == looks.size - 1, 0.0, np.inf)
    if design == "fixed":
        return final - ndtri(alpha / sided)
    if design == "reflection":
        return reflection_critical(alpha, sided=sided) / np.sqrt(looks)
    if design == "hybrid":
        return np.minimum(_always_valid(alpha / 5, sided, looks), final + hybrid_critical(alpha, sided=sided))
    return _always_valid(alpha, sided, looks)


def _always_valid(alpha: float, sided: Sided, looks: Array) -> Array:
    """Critical z of the mixtures whose tau² is planned for the largest information."""
    x = optimal_x(alpha, sided=sided) * looks
    if sided == 1:
        return np.array([critical_z(value, alpha) for value in x])
    return np.sqrt((1 + 1 / x) * (2 * math.log(1 / alpha) + np.log1p(x)))


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise StatsError(name, f"must be positive and finite, got {value}")
