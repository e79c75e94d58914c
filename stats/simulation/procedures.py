"""Stopping rules over arrays of shape (runs, looks): which look, if any, is the first to decide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from stats.crossing import spending_boundary
from stats.horizon import ALWAYS_VALID_SHARE, Sided, hybrid_critical, reflection_critical
from stats.mixture import log_e_one_sided, log_e_two_sided
from stats.simulation.rates import Rate

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def tally(decided: Mask, shares: Array, over: Mask | None = None) -> Rate:
    """The runs that ever decide, and where they stop: shares[k] of the plan at look k, the last one if never.

    over: the looks at which a run ends undecided, where that may be before the last column.
    """
    hit = decided.any(axis=1)
    ended = decided if over is None else decided | over
    stop = np.where(ended.any(axis=1), ended.argmax(axis=1), decided.shape[1] - 1)
    return Rate(int(hit.sum()), hit.size, float(shares[stop].sum()))


def one_look(z: Array, alpha: float, *, sided: Sided) -> Mask:
    """An ordinary z test at the last look only."""
    crossed = _directed(z, sided) >= -ndtri(alpha / sided)
    return np.asarray(crossed & (np.arange(z.shape[1]) == z.shape[1] - 1))


def peeks(z: Array, alpha: float, *, sided: Sided) -> Mask:
    """The same test at every look, uncorrected: the error that everything else here avoids."""
    return np.asarray(_directed(z, sided) >= -ndtri(alpha / sided))


def obrien_fleming(z: Array, alpha: float, *, sided: Sided, every: int = 1) -> Mask:
    """Lan-DeMets spending of O'Brien-Fleming type at equally spaced looks, of which `every`-th ones are used."""
    looks = z.shape[1]
    used = np.arange(every - 1, looks, every)
    bounds = np.full(looks, np.inf)
    bounds[used] = _obrien_fleming_bounds(used.size, alpha / sided)
    return np.asarray(_directed(z, sided) >= bounds)


def reflection(
    z: Array, variance: Array, horizon_variance: float, alpha: float, *, sided: Sided, final: float = math.inf
) -> Mask:
    """Planned horizon in information time; frozen at the first look that reaches it.

    final: the critical z of that look, where it is not the closed form's (`stats.horizon.final_critical`).
    """
    t = np.minimum(1.0, horizon_variance / np.maximum(variance, 1e-300)) * (variance > 0)
    directed = _directed(z, sided)
    crossed = directed * np.sqrt(t) >= reflection_critical(alpha, sided=sided)
    return np.asarray((crossed | ((t >= 1) & (directed >= final))) & ~_after_first(t >= 1))


def hybrid(d: Array, variance: Array, horizon_variance: float, tau2: float, alpha: float, *, sided: Sided) -> Mask:
    """A fifth of alpha always-valid, the rest on the first look at the horizon; ends there."""
    at_horizon = (variance > 0) & (variance <= horizon_variance)
    at_horizon[:, -1] |= ~at_horizon.any(axis=1)  # a plan that runs out of users looks once at its end
    over = _after_first(at_horizon)
    z = np.divide(d, np.sqrt(variance), out=np.zeros_like(d), where=variance > 0)
    final = at_horizon & ~over & (_directed(z, sided) >= hybrid_critical(alpha, sided=sided))
    return np.asarray((always_valid(d, variance, tau2, alpha * ALWAYS_VALID_SHARE, sided=sided) & ~over) | final)


def always_valid(d: Array, variance: Array, tau2: float, alpha: float, *, sided: Sided) -> Mask:
    """The mixture e-process at 1 / alpha."""
    log_e = log_e_one_sided(d, variance, tau2) if sided == 1 else log_e_two_sided(d, variance, tau2)
    return np.asarray(log_e >= -math.log(alpha))


def _obrien_fleming_bounds(looks: int, alpha: float) -> Array:
    shares = np.arange(1, looks + 1) / looks
    return spending_boundary(shares, 2 * ndtr(ndtri(alpha / 2) / np.sqrt(shares)))


def _directed(z: Array, sided: Sided) -> Array:
    return z if sided == 1 else np.abs(z)


def _after_first(reached: Mask) -> Mask:
    """True at every look after the first one where `reached` holds."""
    seen = np.maximum.accumulate(reached, axis=1)
    return np.concatenate([np.zeros((seen.shape[0], 1), dtype=np.bool_), seen[:, :-1]], axis=1)
