"""Point estimates of one arm with their variances over users."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stats.errors import StatsError
from stats.moments import Moments


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, the variance of that value (not of a user), and the users behind it."""

    value: float
    variance: float
    n: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and math.isfinite(self.variance)):
            raise StatsError("estimate", f"value {self.value} and variance {self.variance} must be finite")
        if self.variance < 0:
            raise StatsError("variance", f"a variance cannot be negative, got {self.variance}")
        if self.n < 1:
            raise StatsError("n", f"an estimate needs users, got {self.n}")


def mean(m: Moments) -> Estimate | None:
    """The mean of x per user, V = s_x² / n. None below two users: no variance, so nothing to say."""
    if m.n < 2:
        return None
    return Estimate(m.mean_x, m.m_xx / (m.n - 1) / m.n, m.n)


def ratio(m: Moments) -> Estimate | None:
    """R = Σx / Σy over users, V = (s_x² - 2 R s_xy + R² s_y²) / (ȳ² n), the delta method with users as units.

    None below two users or when Σy = 0. Source: Deng, Knoblich & Lu 2018 (1803.06336), section 3.1; the same number as
    the variance of the score (x - R y) / ȳ.
    """
    if m.n < 2 or m.mean_y == 0:
        return None
    r = m.mean_x / m.mean_y
    spread = m.m_xx - 2 * r * m.m_xy + r * r * m.m_yy
    return Estimate(r, max(spread, 0.0) / (m.n - 1) / (m.mean_y * m.mean_y * m.n), m.n)
