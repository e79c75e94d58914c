"""CUPED: take out of an estimate what the time before the experiment already explains.

The covariate must have been measured before a user's first exposure, so that the treatment cannot have moved it. It is
the c of `Moments`: the same metric before the experiment for a mean; for a ratio the user's pre-period score
(pre clicks - R_pre × pre impressions). Users without a history carry c = 0; `History` gives them their own level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stats.errors import StatsError
from stats.estimate import Estimate, mean, ratio
from stats.moments import Moments

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class History:
    """One arm, split into users with a pre-period (their c counts) and newcomers (their c must be 0)."""

    returning: Moments
    newcomers: Moments

    def __post_init__(self) -> None:
        if self.newcomers.sc != 0 or self.newcomers.m_cc != 0:
            raise StatsError("newcomers", "users without a history must carry the covariate 0")


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Both arms after adjustment, the pooled coefficients, and the share of variance that is left (1: no help)."""

    treatment: Estimate
    control: Estimate
    theta: tuple[float, ...]
    variance_left: float


@dataclass(frozen=True, slots=True)
class _Arm:
    """Co-moments of a user's score u with k covariates z: plain estimate, Σuu, Σuz (k,), Σzz (k, k), z̄ (k,)."""

    plain: Estimate
    uu: float
    uz: Array
    zz: Array
    z_mean: Array


Source = Moments | History


def adjusted_means(treatment: Source, control: Source) -> Adjusted | None:
    """Means with the covariate's part removed: μ_a - θ (c̄_a - c̄), θ pooled within arms; V from s² + θ² s_c² - 2 θ s_xc.

    Pass `History` on both sides to give newcomers a coefficient of their own. None when an arm has no mean. A covariate
    without variance changes nothing. Source: Deng, Xu, Kohavi & Walker 2013, equations 3 to 5.
    """
    return _adjusted(_arm(treatment, mean, _mean_score), _arm(control, mean, _mean_score))


def adjusted_ratios(treatment: Source, control: Source) -> Adjusted | None:
    """Ratios with the covariate's part removed; the outcome is a user's score (x - R y) / ȳ. None without a ratio."""
    return _adjusted(_arm(treatment, ratio, _ratio_score), _arm(control, ratio, _ratio_score))


def _adjusted(treatment: _Arm | None, control: _Arm | None) -> Adjusted | None:
    if treatment is None or control is None:
        return None
    theta = np.asarray(np.linalg.lstsq(treatment.zz + control.zz, treatment.uz + control.uz, rcond=None)[0], np.float64)
    n_t, n_c = treatment.plain.n, control.plain.n
    centre = (n_t * treatment.z_mean + n_c * control.z_mean) / (n_t + n_c)
    t, c = _shifted(treatment, theta, centre), _shifted(control, theta, centre)
    before = treatment.plain.variance + control.plain.variance
    return Adjusted(t, c, tuple(map(float, theta)), (t.variance + c.variance) / before if before > 0 else 1.0)


def _shifted(arm: _Arm, theta: Array, centre: Array) -> Estimate:
    n = arm.plain.n
    spread = arm.uu - 2 * float(theta @ arm.uz) + float(theta @ arm.zz @ theta)
    return Estimate(arm.plain.value - float(theta @ (arm.z_mean - centre)), max(spread, 0.0) / (n - 1) / n, n)


def _arm(
    source: Source, estimate: Callable[[Moments], Estimate | None], score: Callable[[Moments, Moments], _Score]
) -> _Arm | None:
    whole = source if isinstance(source, Moments) else source.returning + source.newcomers
    plain = estimate(whole)
    if plain is None:
        return None
    u = score(whole, whole)
    if isinstance(source, Moments):
        return _Arm(plain, u.uu, np.array([u.uc]), np.array([[whole.m_cc]]), np.array([whole.mean_c]))
    # The indicator h of a history: its co-moments are those between the two groups.
    n_h, n_0 = source.returning.n, source.newcomers.n
    between = n_h * n_0 / whole.n
    gap = score(source.returning, whole).mean - score(source.newcomers, whole).mean
    hc = between * (source.returning.mean_c - source.newcomers.mean_c)
    return _Arm(
        plain,
        u.uu,
        np.array([u.uc, between * gap]),
        np.array([[whole.m_cc, hc], [hc, between]]),
        np.array([whole.mean_c, n_h / whole.n]),
    )


@dataclass(frozen=True, slots=True)
class _Score:
    """A group's mean score, Σuu and Σuc; the score's own parameters come from the whole arm."""

    mean: float
    uu: float
    uc: float


def _mean_score(group: Moments, _whole: Moments) -> _Score:
    return _Score(group.mean_x, group.m_xx, group.m_xc)


def _ratio_score(group: Moments, whole: Moments) -> _Score:
    r, y = whole.mean_x / whole.mean_y, whole.mean_y
    return _Score(
        (group.mean_x - r * group.mean_y) / y,
        (group.m_xx - 2 * r * group.m_xy + r * r * group.m_yy) / (y * y),
        (group.m_xc - r * group.m_yc) / y,
    )
