"""Latency quantiles for people: a fixed-bucket histogram, and a band that holds for every quantile at every look.

Requests of one user or one host depend on each other, so these bands are for display. The gate uses the share of slow
requests clustered by user instead (a `ratio`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from stats.errors import StatsError

LEADING_CONSTANT = 0.85
"""A in A √((ln ln(e n / n_min) + C) / n); the paper's own choice."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Log-spaced edges `first` × growth^i, i = 0 … count, in the unit of the values; 1.01 errs by at most 1 %."""

    first: float
    growth: float
    count: int

    def __post_init__(self) -> None:
        if not (self.first > 0 and self.growth > 1 and self.count >= 1):
            raise StatsError("buckets", "first must be positive, growth above 1 and count at least 1")

    def edge(self, index: int) -> float:
        """The lower edge of bucket `index` (the upper edge of the one before)."""
        return self.first * self.growth**index

    def place(self, values: ArrayLike) -> NDArray[np.int64]:
        """Counts per bucket, shape (count + 2,): below the first edge, the buckets, at or above the last edge."""
        column = np.asarray(values, dtype=np.float64)
        if not (np.isfinite(column).all() and (column >= 0).all()):
            raise StatsError("values", "must be finite and 0 or more")
        with np.errstate(divide="ignore"):
            position = np.floor(np.log(column / self.first) / math.log(self.growth) + 1e-9)
        index = np.clip(position + 1, 0, self.count + 1).astype(np.int64)
        return np.bincount(index, minlength=self.count + 2)


MILLISECONDS = Buckets(first=0.1, growth=1.01, count=1389)
"""0.1 ms to 100 s in steps of 1 %."""


def quantile_band(
    counts: Sequence[int] | NDArray[np.int64],
    p: float,
    alpha: float,
    *,
    buckets: Buckets = MILLISECONDS,
    start: int = 100,
) -> tuple[float, float] | None:
    """Limits of the p-quantile that hold for all p and all looks from `start` values on, with probability 1 - alpha.

    counts: as from `Buckets.place` (add histograms to merge them). The limits are bucket edges, rounded outwards; 0 or
    infinite where the data do not bound that side. None before `start` values. Source: Howard & Ramdas 1906.09712,
    theorem 2 (a Dvoretzky-Kiefer-Wolfowitz band that is uniform over time).
    """
    if not 0 < p < 1:
        raise StatsError("p", f"a quantile lies strictly between 0 and 1, got {p}")
    column = np.asarray(counts)
    if column.shape != (buckets.count + 2,) or (column < 0).any():
        raise StatsError("counts", f"expected {buckets.count + 2} counts of 0 or more, got shape {column.shape}")
    n = int(column.sum())
    if n < start:
        return None
    radius = band_radius(n, alpha, start=start)
    below = column.cumsum()[:-1] / n  # share of values below edge i
    surely_below = np.flatnonzero(below + radius < p)
    surely_above = np.flatnonzero(below - radius >= p)
    low = buckets.edge(int(surely_below[-1])) if surely_below.size else 0.0
    high = buckets.edge(int(surely_above[0])) if surely_above.size else math.inf
    return low, high


def quantile(counts: Sequence[int] | NDArray[np.int64], p: float, *, buckets: Buckets = MILLISECONDS) -> float | None:
    """The upper edge of the bucket that holds the p-quantile; infinite beyond the last edge, None without values."""
    column = np.asarray(counts)
    if not 0 < p < 1:
        raise StatsError("p", f"a quantile lies strictly between 0 and 1, got {p}")
    n = int(column.sum())
    if n == 0:
        return None
    index = int(np.searchsorted(column.cumsum(), p * n))
    return buckets.edge(index) if index <= buckets.count else math.inf


def band_radius(n: int, alpha: float, *, start: int) -> float:
    """How far the empirical distribution may ever be from the true one at n >= start values (error alpha)."""
    if not 0 < alpha < 1:
        raise StatsError("alpha", f"must lie strictly between 0 and 1, got {alpha}")
    if not n >= start >= 1:
        raise StatsError("n", f"the band begins at {start} values, got {n}")
    return LEADING_CONSTANT * math.sqrt((math.log1p(math.log(n / start)) + _level(alpha)) / n)


@lru_cache(maxsize=64)
def _level(alpha: float) -> float:
    """C such that the error bound of theorem 2, minimised over its free parameter η, is alpha."""
    return float(brentq(lambda c: math.log(_error(c) / alpha), 1.0, 200.0, xtol=1e-12))


def _error(c: float) -> float:
    """min over η of 4 exp(-γ² C) (1 + 1 / ((γ² - 1) ln η)), γ = √(2/η) (A - √(2 (η - 1) / C)), wherever γ > 1."""
    a = LEADING_CONSTANT

    def gamma_minus_one(eta: float) -> float:
        return math.sqrt(2 / eta) * (a - math.sqrt(2 * (eta - 1) / c)) - 1

    def log_bound(eta: float) -> float:
        gamma2 = (1 + gamma_minus_one(eta)) ** 2
        return math.log(4) - gamma2 * c + math.log1p(1 / ((gamma2 - 1) * math.log(eta)))

    largest = float(brentq(gamma_minus_one, 1.0, 2 * a * a))
    span = largest - 1
    best = minimize_scalar(
        log_bound, bounds=(1 + 1e-9 * span, largest - 1e-9 * span), method="bounded", options={"xatol": 1e-12}
    )
    return math.exp(float(best.fun))
