"""Many claims at once: Holm on always-valid p-values, e-BH on current e-values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stats.errors import StatsError


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given. Claiming those <= alpha keeps the family-wise error at alpha.

    Latched p-values are fine: each is valid at every look, and Holm needs nothing of their dependence.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise StatsError("p_values", "every p-value lies between 0 and 1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def e_bh(log_e_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses the e-BH procedure rejects, at a false discovery rate of alpha under any dependence.

    Only for e-values as they are NOW: a running maximum is not an e-value. Rejects the k largest, k being the largest
    number with k E_(k) >= K / alpha. Source: Wang & Ramdas 2009.02824, section 4.
    """
    if not 0 < alpha < 1:
        raise StatsError("alpha", f"must lie strictly between 0 and 1, got {alpha}")
    if any(math.isnan(log_e) for log_e in log_e_values):
        raise StatsError("log_e_values", "a log e-value cannot be NaN")
    needed = math.log(len(log_e_values) / alpha) if log_e_values else 0.0
    largest_first = sorted(log_e_values, reverse=True)
    threshold = math.inf
    for k, log_e in enumerate(largest_first, start=1):
        if log_e + math.log(k) >= needed:
            threshold = log_e
    return [log_e >= threshold for log_e in log_e_values]
