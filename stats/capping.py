"""Capping (winsorising) heavy-tailed values at a limit that the experiment's own data cannot move."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stats.errors import StatsError

FEWEST_ABOVE = 10
"""Users that must lie at or beyond the quantile, so that the cap is not one person's value."""


def cap_at(pre_period: ArrayLike, quantile: float) -> float:
    """The value at a pre-period quantile (.99, .999), to be fixed when the experiment is created.

    pre_period: one finite value a user, before the experiment. Raises StatsError when too few users lie beyond the
    quantile, or when the cap would be 0 (most users have nothing: everything would be cut away).
    """
    values = np.asarray(pre_period, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise StatsError("pre_period", "expected one finite value a user")
    if not 0.5 <= quantile < 1:
        raise StatsError("quantile", f"must be at least 0.5 and below 1, got {quantile}")
    if values.size * (1 - quantile) < FEWEST_ABOVE - 1e-9:
        needed = int(np.ceil(FEWEST_ABOVE / (1 - quantile) - 1e-9))
        raise StatsError("pre_period", f"{values.size} users are too few for quantile {quantile}: {needed} are needed")
    cap = float(np.quantile(values, quantile, method="higher"))
    if cap <= 0:
        raise StatsError("quantile", f"the pre-period value at quantile {quantile} is {cap}; a cap must be positive")
    return cap


def capped(values: ArrayLike, cap: float) -> NDArray[np.float64]:
    """The values, none above the cap. Apply it to a user's total, never to single events."""
    if not cap > 0:
        raise StatsError("cap", f"must be positive, got {cap}")
    return np.minimum(np.asarray(values, dtype=np.float64), cap)
