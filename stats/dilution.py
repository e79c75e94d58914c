"""Triggered analysis: the effect among users whose slate would differ, and what that means for everybody.

Both variants score the same request (in shadow), so a user is triggered when at least one slate differs: whichever arm
the user is in, before anything is shown. For the others both arms serve the same slate, their difference is exactly
zero, and leaving them out removes their noise. Check the triggered counts with `srm.log_e_srm` like any other split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stats.contrast import Contrast, floored
from stats.edge import edge
from stats.errors import StatsError
from stats.estimate import Estimate, ratio
from stats.moments import Moments
from stats.relative import half_width


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
    return _against(triggered, -margin_rel) if increasing else _against(triggered, margin_rel).harm


def diluted_interval(triggered: Triggered, tau2: float, alpha: float) -> tuple[float, float]:
    """Always-valid limits of the relative effect on EVERYBODY: the r at which d(r) = w (R_T - R_C) - r R_overall ends.

    As in `relative_interval`, every r is a hypothesis about a contrast with a variance of its own, and nothing is
    divided by a noisy control. tau2 is that of the untriggered contrast, which is on the same scale. A side on which no
    r is rejected is infinite. Raises StatsError on an impossible tau2 or alpha.
    """
    if not 0 < alpha < 1:
        raise StatsError("alpha", f"must lie strictly between 0 and 1, got {alpha}")
    if not (math.isfinite(tau2) and tau2 > 0):
        raise StatsError("tau2", f"must be positive and finite, got {tau2}")
    centre, overall = triggered.relative_overall, triggered.control_overall
    spread = _against(triggered, centre).variance if math.isfinite(centre) else 0.0
    if spread == 0:
        return -math.inf, math.inf

    def excess(r: float) -> float:
        """Above 0 where r is rejected."""
        contrast = _against(triggered, r)
        if contrast.variance == 0:
            return -math.inf
        return abs(contrast.d) - half_width(contrast.variance, tau2, alpha)

    reach = half_width(spread, tau2, alpha) / abs(overall)
    return edge(excess, centre, -reach), edge(excess, centre, reach)


def triggered_share(triggered: Moments, rest: Moments) -> Estimate | None:
    """The part of the denominator y that triggered users hold: Σ y·[triggered] / Σ y, its variance over users.

    None below two users or when Σ y = 0.
    """
    held = Moments(
        triggered.n, triggered.sy, triggered.sy, 0.0,
        triggered.m_yy, triggered.m_yy, triggered.m_yy, 0.0, 0.0, 0.0,
    )  # fmt: skip
    others = Moments(rest.n, 0.0, rest.sy, 0.0, 0.0, rest.m_yy, 0.0, 0.0, 0.0, 0.0)
    return ratio(held + others)


def _against(triggered: Triggered, r: float) -> Contrast:
    """d(r) = w (R_T - R_C) - r (w R_C + (1 - w) R_rest): above 0 when the relative effect on everybody is above r."""
    t, c = floored(triggered.treatment, triggered.control)
    w, rest = triggered.share.value, triggered.rest
    effect = t.value - c.value
    slope_w = effect - r * (c.value - rest.value)
    variance = (
        w * w * t.variance
        + (w * (1 + r)) ** 2 * c.variance
        + (r * (1 - w)) ** 2 * rest.variance
        + slope_w * slope_w * triggered.share.variance
    )
    return Contrast(w * effect - r * triggered.control_overall, variance)
