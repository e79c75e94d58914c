"""Triggered analysis: the effect among users whose slate would differ, and what that means for everybody.

Both variants score the same request (in shadow), so a user is triggered when at least one slate differs: whichever arm
the user is in, before anything is shown. For the others both arms serve the same slate, their difference is exactly
zero, and leaving them out removes their noise. Check the triggered counts with `srm.log_e_srm` like any other split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stats.contrast import Contrast, floored
from stats.errors import StatsError
from stats.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Triggered:
    """The four estimates that a triggered analysis needs.

    treatment, control: the metric among triggered users of each arm. rest: the metric among everybody else, both arms
    together (they were served alike). share: the part of the denominator (users for a mean, impressions for a ratio)
    that triggered users hold, over both arms: the ratio Σ y·[triggered] / Σ y with its delta-method variance.
    """

    treatment: Estimate
    control: Estimate
    rest: Estimate
    share: Estimate

    def __post_init__(self) -> None:
        if not 0 < self.share.value <= 1:
            raise StatsError("share", f"the triggered share lies above 0 and at most 1, got {self.share.value}")

    @property
    def control_overall(self) -> float:
        """The control's value over everybody: w R_C + (1 - w) R_rest."""
        w = self.share.value
        return w * self.control.value + (1 - w) * self.rest.value

    @property
    def relative_overall(self) -> float:
        """The relative effect on everybody; NaN when the control's overall value is 0."""
        overall = self.control_overall
        return self.share.value * (self.treatment.value - self.control.value) / overall if overall else math.nan


def diluted(triggered: Triggered, margin_rel: float, *, increasing: bool = True) -> Contrast:
    """The non-inferiority contrast for EVERYBODY from triggered data: d = w (R_T - R_C) + m (w R_C + (1 - w) R_rest).

    H0: d <= 0 is the same hypothesis as in an untriggered analysis, at a fraction of its variance: the delta method
    over the four estimates, which come from disjoint users except w; w's own noise is included. For a metric that
    should fall the effect's sign is turned. margin_rel = 0 asks for superiority. Raises StatsError on an impossible
    margin.
    """
    if not (math.isfinite(margin_rel) and margin_rel >= 0) or (increasing and margin_rel >= 1):
        raise StatsError("margin_rel", f"a margin is a share of the control's value, got {margin_rel}")
    t, c = floored(triggered.treatment, triggered.control)
    sign = 1.0 if increasing else -1.0
    w, rest = triggered.share.value, triggered.rest
    effect = sign * (t.value - c.value)
    slope_w = effect + margin_rel * (c.value - rest.value)
    variance = (
        w * w * t.variance
        + (w * (margin_rel - sign)) ** 2 * c.variance
        + (margin_rel * (1 - w)) ** 2 * rest.variance
        + slope_w * slope_w * triggered.share.variance
    )
    return Contrast(w * effect + margin_rel * triggered.control_overall, variance)
