"""Planned-horizon tests: monitor without limit, stop at a planned information, pay 9-11 % more than a single look.

Reflection: a Brownian path ever exceeds a level b up to time 1 with probability 2 (1 - Φ(b)), so rejecting when
z √t >= z_{1 - a/2} (t: the share of the planned information) has error a at any schedule of looks. Hybrid: a fifth of
alpha on an always-valid test for ever, the rest on one ordinary look at the horizon.

The horizon is an INFORMATION, 1 / variance, never a number of users: variance grows with the metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from stats.crossing import crossing_probabilities, last_critical
from stats.errors import StatsError
from stats.mixture import log_e_one_sided, log_e_two_sided

Sided = Literal[1, 2]
Outcome = Literal["reject", "continue", "inconclusive"]
ALWAYS_VALID_SHARE = 0.2
"""The part of alpha that the hybrid spends on its always-valid test."""
PLANNED_LOOKS = 100
"""Looks that planning assumes; the test itself allows any number."""


def information_share(variance: float, horizon_variance: float) -> float:
    """t = min(1, I / I_max) with I = 1 / variance; 0 while no noise has been measured."""
    if not (math.isfinite(horizon_variance) and horizon_variance > 0):
        raise StatsError("horizon_variance", f"must be positive and finite, got {horizon_variance}")
    if not variance >= 0:
        raise StatsError("variance", f"must be 0 or more, got {variance}")
    return min(1.0, horizon_variance / variance) if variance > 0 else 0.0


def reflection_critical(alpha: float, *, sided: Sided) -> float:
    """The level for z √t: z_{1 - a/2} one-sided, z_{1 - a/4} for |z| two-sided (2.2414 at a = .05)."""
    _check(alpha)
    return float(-ndtri(alpha / 2 if sided == 1 else alpha / 4))


def reflection_p(d: float, variance: float, horizon_variance: float, *, sided: Sided) -> float:
    """The p-value of a look: 2 (1 - Φ(z √t)) one-sided, 4 (1 - Φ(|z| √t)) two-sided, at most 1. Latch its minimum."""
    t = information_share(variance, horizon_variance)
    if t == 0:
        return 1.0
    level = (d if sided == 1 else abs(d)) / math.sqrt(variance) * math.sqrt(t)
    return min(1.0, (2 if sided == 1 else 4) * float(ndtr(-level)))


def reflection_power(drift: float, alpha: float, *, sided: Sided) -> float:
    """P(reject by the horizon) when z at the horizon has mean `drift`, with unlimited looks: Φ(δ-b) + e^{2δb} Φ(-δ-b).

    Two-sided: in the drift's direction only; crossing the wrong way is left out (below 1e-4 at any useful power).
    """
    b = reflection_critical(alpha, sided=sided)
    return float(ndtr(drift - b) + math.exp(2 * drift * b) * ndtr(-drift - b))


@lru_cache(maxsize=256)
def reflection_drift(alpha: float, power: float, *, sided: Sided, looks: int = PLANNED_LOOKS) -> float:
    """The mean of z at the horizon that gives this power: the effect divided by its standard error there.

    With `looks` evenly spaced looks, exactly; fewer looks miss crossings between them and need a little more.
    """
    _check(alpha)
    if not alpha < power < 1:
        raise StatsError("power", f"must lie between alpha and 1, got {power}")
    shares = np.arange(1, looks + 1) / looks
    upper = reflection_critical(alpha, sided=sided) / np.sqrt(shares)
    return float(brentq(lambda d: crossing_probabilities(shares, upper, effect=d).sum() - power, 0.0, 8.0, xtol=1e-9))


def horizon_variance(effect: float, alpha: float, power: float, *, sided: Sided, looks: int = PLANNED_LOOKS) -> float:
    """The variance at which to stop so that `effect` (absolute; the margin, where none is expected) is found."""
    if not (math.isfinite(effect) and effect > 0):
        raise StatsError("effect", f"must be positive and finite, got {effect}")
    return (effect / reflection_drift(alpha, power, sided=sided, looks=looks)) ** 2


def final_critical(shares: Sequence[float], alpha: float, *, sided: Sided) -> float:
    """Critical z of the first look at the horizon when the earlier looks were at these information shares only.

    The closed form pays for a look at every instant; real looks are fewer, and what they did not spend is spent here.
    At 50 looks and one-sided .05 power rises from .751 to .788; Lan-DeMets with O'Brien-Fleming spending has .777.
    shares: increasing, each above 0 and below 1; looks of no information yet are left out. Never above
    `reflection_critical`. The looks' times must not depend on what earlier looks showed.
    """
    before = np.asarray(shares, np.float64)
    if before.size and not before.max() < 1:
        raise StatsError("shares", "looks before the horizon have information shares below 1")
    level = reflection_critical(alpha, sided=sided)
    exact = last_critical(np.append(before, 1.0), level / np.sqrt(before), alpha / sided)
    return min(level, exact)


@dataclass(frozen=True, slots=True)
class Reflection:
    """A planned-horizon test; every part is fixed before the data. Freeze its outcome at the first final one."""

    alpha: float
    horizon_variance: float
    sided: Sided = 1

    def judge(self, d: float, variance: float, *, final: float | None = None) -> Outcome:
        """reject: proved. inconclusive: the horizon is reached without proof (which is not proof of no effect).

        final: `final_critical` of the looks so far, used at the horizon only; None keeps to the closed form there.
        """
        t = information_share(variance, self.horizon_variance)
        if reflection_p(d, variance, self.horizon_variance, sided=self.sided) <= self.alpha:
            return "reject"
        if t < 1:
            return "continue"
        z = (d if self.sided == 1 else abs(d)) / math.sqrt(variance)
        return "reject" if final is not None and z >= final else "inconclusive"


@dataclass(frozen=True, slots=True)
class Hybrid:
    """A fifth of alpha always-valid, four fifths on one look at the horizon; all parts are fixed before the data.

    After the horizon the always-valid part lives on: `judge` goes on rejecting on its evidence alone.
    """

    alpha: float
    horizon_variance: float
    tau2: float
    sided: Sided = 1

    def judge(self, d: float, variance: float, *, final_look: bool) -> Outcome:
        """final_look: True at the first look at or past the horizon, and at no other."""
        log_e = (log_e_one_sided if self.sided == 1 else log_e_two_sided)(d, variance, self.tau2)
        if log_e >= -math.log(self.alpha * ALWAYS_VALID_SHARE):
            return "reject"
        if not final_look:
            return "continue"
        z = (d if self.sided == 1 else abs(d)) / math.sqrt(variance) if variance > 0 else 0.0
        return "reject" if z >= hybrid_critical(self.alpha, sided=self.sided) else "inconclusive"


def hybrid_critical(alpha: float, *, sided: Sided) -> float:
    """Critical z of the hybrid's one look at the horizon, at four fifths of alpha."""
    _check(alpha)
    return float(-ndtri(alpha * (1 - ALWAYS_VALID_SHARE) / sided))


def _check(alpha: float) -> None:
    if not 0 < alpha < 0.5:
        raise StatsError("alpha", f"must lie strictly between 0 and 0.5, got {alpha}")
