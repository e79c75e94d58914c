"""Exact probabilities of crossing a boundary at planned looks: power, error and stopping time without Monte-Carlo.

The recursion of Armitage, McPherson & Rowe (1969) for a statistic with independent normal increments in information
time, S_k ~ N(θ I_k, I_k), z_k = S_k / √I_k. The density of paths that have not stopped is kept on Gauss-Legendre nodes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from stats.errors import StatsError

Array = NDArray[np.float64]
_TAIL_SD = 6.5  # paths further out than this from their mean are ignored: 4e-11 each way
_NODES_PER_SD = 1.6  # of one look's increment; enough for 1e-7 on smooth densities
_NODE_STEP = 48  # node counts are rounded up to multiples of this, so that few rules have to be computed


class _Alive:
    """The density, at the present information, of paths that have not crossed yet."""

    def __init__(self, effect: float) -> None:
        self._effect = effect
        self._information = 0.0
        self._nodes, self._density = np.zeros(1), np.ones(1)  # a point mass; quadrature weights are folded in

    def crossing(self, information: float, limit: float) -> float:
        """P(alive until now and S >= limit at `information`); changes nothing."""
        if not math.isfinite(limit):
            return 0.0
        sd = math.sqrt(information - self._information)
        return float(self._density @ ndtr((self._drifted(information) - limit) / sd))

    def advance(self, information: float, limit: float) -> bool:
        """Go to `information`, keeping the paths with S < limit; False when none are left."""
        sd, mean = math.sqrt(information - self._information), self._effect * information
        reach = _TAIL_SD * math.sqrt(information)
        low, high = mean - reach, min(limit, mean + reach)
        if high <= low:
            return False
        nodes, weights = _rule(_NODE_STEP * math.ceil(_NODES_PER_SD * (high - low) / sd / _NODE_STEP))
        fresh = low + (nodes + 1) * (high - low) / 2
        kernel = np.exp(-0.5 * ((fresh[:, None] - self._drifted(information)[None, :]) / sd) ** 2)
        self._density = (kernel @ self._density) * weights * (high - low) / (2 * sd * math.sqrt(2 * math.pi))
        self._nodes, self._information = fresh, information
        return True

    def _drifted(self, information: float) -> Array:
        return np.asarray(self._nodes + self._effect * (information - self._information), np.float64)


def crossing_probabilities(information: ArrayLike, upper: ArrayLike, *, effect: float) -> Array:
    """P(first z_k >= upper_k at look k), shape (looks,), when the true effect is `effect`.

    information: increasing, positive, shape (looks,); upper: critical z at each look (inf: no stopping there). The sum
    is the power (or the error, at the edge of H0). Raises StatsError on looks that are not increasing in information.
    """
    info, bounds = _looks(information, upper)
    crossed, alive = np.zeros(info.size), _Alive(effect)
    for k, (now, bound) in enumerate(zip(info, bounds, strict=True)):
        limit = bound * math.sqrt(now)
        crossed[k] = alive.crossing(now, limit)
        if not alive.advance(now, limit):
            break
    return crossed


def spending_boundary(information: ArrayLike, spent: ArrayLike) -> Array:
    """Critical z at each look of a one-sided group-sequential test that has spent `spent` of its error by then.

    spent: increasing, shape (looks,), its last value is alpha. Source: Lan & DeMets (1983).
    """
    info, totals = _looks(information, spent)
    alive, bounds = _Alive(0.0), np.empty(info.size)
    for k, now in enumerate(info):
        step = float(totals[k] - (totals[k - 1] if k else 0.0))
        root = math.sqrt(now)
        bounds[k] = _bound(alive, float(now), step, root) if step > 1e-14 else math.inf
        alive.advance(float(now), bounds[k] * root)
    return bounds


def _bound(alive: _Alive, now: float, step: float, root: float) -> float:
    return float(brentq(lambda z: math.log(max(alive.crossing(now, z * root), 1e-300) / step), -8.0, 9.0, xtol=1e-10))


def last_critical(information: ArrayLike, upper: ArrayLike, alpha: float) -> float:
    """The critical z of a last look that spends what is left of a one-sided alpha after `upper` at the looks before.

    information: shape (looks,), the last entry is the last look's; upper: shape (looks - 1,). Infinite when nothing is
    left. Valid when the schedule of looks does not depend on what they showed.
    """
    info, bounds = _looks(information, np.append(np.asarray(upper, np.float64), 0.0))
    alive, left = _Alive(0.0), alpha
    for now, bound in zip(info[:-1], bounds[:-1], strict=True):
        limit = float(bound) * math.sqrt(now)
        left -= alive.crossing(float(now), limit)
        alive.advance(float(now), limit)
    last = float(info[-1])
    return _bound(alive, last, left, math.sqrt(last)) if left > 1e-14 else math.inf


def expected_stop(information: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean information at the end: the look that crossed, or the last one for paths that never did."""
    info, p = np.asarray(information, np.float64), np.asarray(probabilities, np.float64)
    return float(info @ p + info[-1] * (1 - p.sum()))


def _looks(information: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    info, column = np.asarray(information, np.float64), np.asarray(values, np.float64)
    if info.ndim != 1 or info.size == 0 or info.shape != column.shape:
        raise StatsError("information", f"needs one value for each look; got shapes {info.shape} and {column.shape}")
    if info[0] <= 0 or (np.diff(info) <= 0).any():
        raise StatsError("information", "must be positive and grow at every look")
    return info, column


@lru_cache(maxsize=256)
def _rule(n: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return nodes, weights
