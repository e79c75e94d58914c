"""Many experiments at once: the arms' values and variances at every look, as arrays of shape (runs, looks)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stats.contrast import UNEQUAL
from stats.simulation.worlds import Pool

Array = NDArray[np.float64]
Looks = NDArray[np.int64]
_CHUNK = 3_000_000  # users drawn at once: bounds memory


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Raw sums over users up to each look; n: users, shape (looks,); the others (runs, looks). `+` joins user sets."""

    n: NDArray[np.int64]
    x: Array
    y: Array
    xx: Array
    yy: Array
    xy: Array

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.yy + other.yy,
            self.xy + other.xy,
        )

    def estimate(self) -> tuple[Array, Array]:
        """(value, variance) as `stats.estimate.ratio` has them (with y = 1: as `mean` has them)."""
        n = self.n
        r = self.x / self.y
        spread = self.xx - self.x**2 / n - 2 * r * (self.xy - self.x * self.y / n) + r * r * (self.yy - self.y**2 / n)
        return r, np.maximum(spread, 0.0) / (n - 1) * n / self.y**2


def draw(population: Pool, looks: Looks, runs: int, rng: np.random.Generator) -> Sums:
    """Sums of `runs` independent samples whose users have arrived by `looks` (increasing counts, shape (looks,))."""
    starts, users = np.concatenate([[0], looks[:-1]]), int(looks[-1])
    step = max(1, _CHUNK // users)
    blocks = [_blocks(population, starts, (min(step, runs - at), users), rng) for at in range(0, runs, step)]
    x, y, xx, yy, xy = (np.concatenate([block[i] for block in blocks]).cumsum(axis=1) for i in range(5))
    return Sums(looks, x, y, xx, yy, xy)


def _blocks(population: Pool, starts: Looks, shape: tuple[int, int], rng: np.random.Generator) -> list[Array]:
    index = rng.integers(0, population.x.size, shape, dtype=np.uint32)
    x = population.x[index]

    def per_look(values: NDArray[np.float32]) -> Array:
        return np.add.reduceat(values, starts, axis=1, dtype=np.float64)

    if population.y is None:
        ones = np.broadcast_to(np.diff(np.append(starts, shape[1])).astype(np.float64), (shape[0], starts.size))
        sx = per_look(x)
        return [sx, ones, per_look(x * x), ones, sx]
    y = population.y[index]
    return [per_look(x), per_look(y), per_look(x * x), per_look(y * y), per_look(x * y)]


def contrast(t: Sums, c: Sums, margin: float = 0.0, *, floor: bool = True) -> tuple[Array, Array]:
    """(d, V) of R_T - (1 - margin) R_C, as `stats.contrast.noninferiority` has them; floor=False plants its absence."""
    (rt, vt), (rc, vc) = t.estimate(), c.estimate()
    if floor:
        vt, vc = (
            np.where(c.n > UNEQUAL * t.n, np.maximum(vt, vc * c.n / t.n), vt),
            np.where(t.n > UNEQUAL * c.n, np.maximum(vc, vt * t.n / c.n), vc),
        )
    share = 1 - margin
    return rt - share * rc, vt + share * share * vc


def z_score(d: Array, variance: Array) -> Array:
    """d / √V, 0 where no noise was measured."""
    return np.divide(d, np.sqrt(variance), out=np.zeros_like(d), where=variance > 0)
