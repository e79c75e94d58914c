"""The metrics that the platform knows. A specification that names another is refused, never ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stats.estimate import Estimate, mean, ratio
from stats.moments import Moments

COLUMNS = (
    "requests",
    "impressions",
    "clicks",
    "watch_s",
    "likes",
    "dismisses",
    "slow",
    "failed",
    "fallbacks",
)
"""What the store folds per user, inside the exposure window."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A per-user numerator over a denominator; `denominator` None means a plain mean per user.

    numerator: columns that are added up. increasing: more is better. cappable: a single user's total may be capped.
    """

    name: str
    title: str
    kind: Literal["ratio", "mean"]
    numerator: tuple[str, ...]
    denominator: str | None
    increasing: bool
    unit: str
    cappable: bool = False

    def estimate(self, moments: Moments) -> Estimate | None:
        """Its value over these users, with its variance; None where there are too few."""
        return ratio(moments) if self.kind == "ratio" else mean(moments)


_KNOWN = (
    Metric("ctr", "click-through rate", "ratio", ("clicks",), "impressions", True, "clicks per impression"),
    Metric("watch_time", "watch time", "mean", ("watch_s",), None, True, "seconds per user", cappable=True),
    Metric("likes", "likes", "mean", ("likes",), None, True, "likes per user", cappable=True),
    Metric("dismisses", "dismisses", "mean", ("dismisses",), None, False, "dismisses per user", cappable=True),
    Metric("error_share", "error share", "ratio", ("failed", "fallbacks"), "requests", False, "failures per request"),
    Metric("slow_share", "slow share", "ratio", ("slow",), "requests", False, "slow answers per request"),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _KNOWN}
