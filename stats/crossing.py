"""Exact probabilities of crossing a boundary at planned looks: power, error and stopping time without Monte-Carlo.

The recursion of Armitage, McPherson & Rowe (1969) for a statistic with independent normal increments in information
time, S_k ~ N(θ I_k, I_k), z_k = S_k / √I_k. The density of paths that have not stopped is kept on Gauss-Legendre nodes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from stats.errors import StatsError

Array = NDArray[np.float64]
_TAIL_SD = 6.5  # paths further out than this from their mean are ignored: 4e-11 each way
_NODES_PER_SD = 1.6  # of one look's increment; enough for 1e-7 on smooth densities
_NODE_STEP = 48  # node counts are rounded up to multiples of this, so that few rules have to be computed


def crossing_probabilities(information: ArrayLike, upper: ArrayLike, *, effect: float) -> Array:
    """P(first z_k >= upper_k at look k), shape (looks,), when the true effect is `effect`.

    information: increasing, positive, shape (looks,); upper: critical z at each look (inf: no stopping there). The sum
    is the power (or the error, at the edge of H0). Raises StatsError on looks that are not increasing in information.
    """
    info, bounds = np.asarray(information, np.float64), np.asarray(upper, np.float64)
    if info.ndim != 1 or info.size == 0 or info.shape != bounds.shape:
        raise StatsError("information", f"one value a look, like upper; got shapes {info.shape} and {bounds.shape}")
    if info[0] <= 0 or (np.diff(info) <= 0).any():
        raise StatsError("information", "must be positive and grow at every look")
    crossed = np.empty(info.size)
    nodes, density = np.zeros(1), np.ones(1)  # before any data: a point mass at 0, with its weight folded in
    before = 0.0
    for k, (now, bound) in enumerate(zip(info, bounds, strict=True)):
        step, sd = now - before, math.sqrt(now - before)
        limit = bound * math.sqrt(now)
        drifted = nodes + effect * step
        crossed[k] = float(density @ ndtr((drifted - limit) / sd)) if math.isfinite(limit) else 0.0
        low = effect * now - _TAIL_SD * math.sqrt(now)
        high = min(limit, effect * now + _TAIL_SD * math.sqrt(now))
        if high <= low:
            crossed[k + 1 :] = 0.0
            break
        fresh, weights = _nodes(_NODE_STEP * math.ceil(_NODES_PER_SD * (high - low) / sd / _NODE_STEP))
        fresh = low + (fresh + 1) * (high - low) / 2
        kernel = np.exp(-0.5 * ((fresh[:, None] - drifted[None, :]) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        density = (kernel @ density) * weights * (high - low) / 2
        nodes, before = fresh, now
    return crossed


def expected_stop(information: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean information at the end: the look that crossed, or the last one for paths that never did."""
    info, p = np.asarray(information, np.float64), np.asarray(probabilities, np.float64)
    return float(info @ p + info[-1] * (1 - p.sum()))


@lru_cache(maxsize=256)
def _nodes(n: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return nodes, weights
