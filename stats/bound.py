"""The one-sided limit of a relative effect that a non-inferiority margin is held against."""

from __future__ import annotations

import math

from stats.contrast import floored
from stats.edge import edge
from stats.errors import StatsError
from stats.estimate import Estimate
from stats.mixture import log_e_one_sided
from stats.relative import half_width

_LONGEST = 3.0
"""Standard errors that the search for the bound may look ahead."""


def relative_bound(
    treatment: Estimate, control: Estimate, tau2: float, alpha: float, *, increasing: bool = True
) -> float:
    """The relative effect r that is just ruled out in the harmful direction, always-valid at level alpha.

    The r at which the one-sided e-value of R_T - (1 + r) R_C (of its negative where less is better) equals 1/alpha; it
    is inside the margin exactly when that e-value proves non-inferiority. Infinite in the harmful direction when
    nothing is ruled out yet, or when the control's value is not positive.
    """
    if not 0 < alpha < 0.5:
        raise StatsError("alpha", f"must lie strictly between 0 and 0.5, got {alpha}")
    sign = 1.0 if increasing else -1.0
    t, c = floored(treatment, control)
    if c.value <= 0:
        return -sign * math.inf
    centre = t.value / c.value
    spread = t.variance + centre * centre * c.variance
    if spread == 0:  # also a treatment in which nobody has done anything yet
        return -sign * math.inf
    threshold = math.log(1 / alpha)

    def proof(q: float) -> float:
        """Above 0 where an effect of q - 1, or worse, is ruled out."""
        variance = t.variance + q * q * c.variance
        if variance == 0:
            return -threshold
        return log_e_one_sided(sign * (t.value - q * c.value), variance, tau2) - threshold

    # About the two-sided limit at twice alpha; with a noisy control what is ruled out may be a narrow window, so a
    # step is never long.
    reach = min(half_width(spread, tau2, 2 * alpha), _LONGEST * math.sqrt(spread)) / c.value
    return edge(proof, centre, -sign * reach) - 1
