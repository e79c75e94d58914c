"""Populations of users to draw from. Their true values are exact, so that H0 is true exactly when a table says so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
POOL = 1 << 21
"""Users in a pool; runs draw from it with replacement, which makes its own values the truth."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """A finite population: x a user, y a user (None: 1 each), float32 arrays of shape (users,)."""

    x: Floats
    y: Floats | None = None

    @property
    def value(self) -> float:
        """The true mean, or ratio."""
        below = self.x.size if self.y is None else float(self.y.sum(dtype=np.float64))
        return float(self.x.sum(dtype=np.float64)) / below

    @property
    def noise(self) -> float:
        """c²: the squared coefficient of variation of one user's score."""
        x = self.x.astype(np.float64)
        if self.y is None:
            return float(x.var() / x.mean() ** 2)
        y = self.y.astype(np.float64)
        return float(((x - self.value * y) / y.mean()).var() / self.value**2)


@dataclass(frozen=True, slots=True)
class Clicks:
    """CTR: lognormal activity (mean impressions, log sd) × beta taste (mean ctr, concentration a + b)."""

    ctr: float = 0.05
    impressions: float = 20.0
    activity_sd: float = 1.0
    concentration: float = 20.0


@dataclass(frozen=True, slots=True)
class Spend:
    """A lognormal value per user (log sd), with mean 1 before it is capped at a quantile (1: not capped)."""

    sd: float = 1.0
    cap: float = 1.0


World = Clicks | Spend


@lru_cache(maxsize=16)
def pool(world: World, lift: float = 0.0, size: int = POOL) -> Pool:
    """The population of a world with a relative lift; the same one for the same arguments."""
    rng = np.random.default_rng([20_241, size])
    if isinstance(world, Spend):
        values = rng.lognormal(-world.sd * world.sd / 2, world.sd, size)
        if world.cap < 1:
            values = np.minimum(values, np.quantile(values, world.cap))
        return Pool((values * (1 + lift)).astype(np.float32))
    activity = rng.lognormal(np.log(world.impressions) - world.activity_sd**2 / 2, world.activity_sd, size)
    y = np.maximum(rng.poisson(activity), 1)
    a = world.ctr * world.concentration
    taste = np.minimum(rng.beta(a, world.concentration - a, size), 1 / (1 + max(lift, 0.0)))
    x = rng.binomial(y, taste * (1 + lift))
    _correct(x, y, round(world.ctr * (1 + lift) * float(y.sum())), rng)
    return Pool(x.astype(np.float32), y.astype(np.float32))


def _correct(x: NDArray[np.int64], y: NDArray[np.int64], clicks: int, rng: np.random.Generator) -> None:
    """Add or take single clicks of random users until the pool has exactly this many (a change of about 0.1 %)."""
    while (missing := clicks - int(x.sum())) != 0:
        able = np.flatnonzero(x < y) if missing > 0 else np.flatnonzero(x > 0)
        chosen = rng.choice(able, min(abs(missing), able.size), replace=False)
        x[chosen] += 1 if missing > 0 else -1
