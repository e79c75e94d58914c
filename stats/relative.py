"""Relative effects with limits, without dividing by a noisy control."""

from __future__ import annotations

import math

from stats.contrast import floored
from stats.edge import edge
from stats.errors import StatsError
from stats.estimate import Estimate


def relative_interval(treatment: Estimate, control: Estimate, tau2: float, alpha: float) -> tuple[float, float]:
    """Always-valid limits of R_T / R_C - 1: the r at which the two-sided sequence of R_T - (1 + r) R_C ends at 0.

    Fieller's argument: every ratio q = 1 + r is a hypothesis about a difference with variance V_T + q² V_C, and the
    interval holds the q next to the estimate that are not rejected; so it is asymmetric, and consistent with the gate's
    margins. A side on which no q is rejected is infinite (the control may be zero); both are when nothing is known.
    """
    if not 0 < alpha < 1:
        raise StatsError("alpha", f"must lie strictly between 0 and 1, got {alpha}")
    if not (math.isfinite(tau2) and tau2 > 0):
        raise StatsError("tau2", f"must be positive and finite, got {tau2}")
    t, c = floored(treatment, control)
    if c.value == 0:
        return -math.inf, math.inf
    centre = t.value / c.value
    spread = t.variance + centre * centre * c.variance
    if spread == 0:  # also a treatment in which nobody has done anything yet
        return -math.inf, math.inf

    def excess(q: float) -> float:
        """Above 0 where q is rejected."""
        variance = t.variance + q * q * c.variance
        if variance == 0:
            return -math.inf
        return abs(t.value - q * c.value) - half_width(variance, tau2, alpha)

    reach = half_width(spread, tau2, alpha) / abs(c.value)
    return edge(excess, centre, -reach) - 1, edge(excess, centre, reach) - 1


def half_width(variance: float, tau2: float, alpha: float) -> float:
    """Half the width of the two-sided confidence sequence, for a positive variance (see `mixture`)."""
    x = tau2 / variance
    return math.sqrt(variance * (1 + 1 / x) * (2 * math.log(1 / alpha) + math.log1p(x)))
