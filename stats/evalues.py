"""E-values over looks: what has been proved stays proved."""

from __future__ import annotations

import math

from stats.errors import StatsError


def latch(previous_max_log_e: float, log_e: float) -> float:
    """The running maximum of a log e-process; under H0 it ever reaches ln(1/a) with probability <= a (Ville)."""
    if math.isnan(previous_max_log_e) or math.isnan(log_e):
        raise StatsError("log_e", "a log e-value cannot be NaN")
    return max(previous_max_log_e, log_e)


def p_value(max_log_e: float) -> float:
    """The always-valid p-value min(1, 1 / max E) of a latched log e-value."""
    if math.isnan(max_log_e):
        raise StatsError("max_log_e", "a log e-value cannot be NaN")
    return min(1.0, math.exp(-max(max_log_e, 0.0)))
