"""Would the tests notice? Each criterion holds for our statistic and fails for the same statistic with a planted error.

Criteria: a true hypothesis is rejected in at most alpha of the runs (plus three Monte-Carlo standard errors), a false
one in most of them; a variance equals the jackknife's, an adjustment the regression's, which share no code with what
they judge. Errors in the formulas of e-values: test_planted_evalues.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from stats.contrast import Contrast, difference, noninferiority
from stats.cuped import adjusted_means
from stats.decision import rollback_threshold
from stats.estimate import Estimate, ratio
from stats.horizon import reflection_critical
from stats.mixture import confidence_sequence, log_e_one_sided, log_e_two_sided, lower_limit, tau2_for
from stats.moments import Moments
from stats.quantile import band_radius
from stats.srm import log_e_srm

Array = NDArray[np.float64]
ALPHA = 0.05
LEVEL = math.log(1 / ALPHA)


def keeps_alpha(alarms: NDArray[np.bool_], alpha: float = ALPHA) -> bool:
    """alarms: shape (runs,), whether a run ever rejected a true hypothesis."""
    return bool(alarms.mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / alarms.size))


def finds(hits: NDArray[np.bool_]) -> bool:
    """hits: shape (runs,), whether a run ever rejected a hypothesis that is plainly false."""
    return bool(hits.mean() >= 0.8)


def paths(mean_at: float, runs: int, information: Array, seed: int) -> tuple[Array, Array]:
    """Estimates of an effect and their variances, shape (runs, looks): what a z test sees in information time."""
    steps = np.sqrt(np.diff(information, prepend=0.0)) * np.random.default_rng(seed).standard_normal(
        (runs, information.size)
    )
    d = mean_at + steps.cumsum(axis=1) / information
    return d, np.broadcast_to(1 / information, d.shape)


# Wrong sign --------------------------------------------------------------------------------------------------------

MARGIN = 0.1
Judge = Callable[[Estimate, Estimate, bool], Contrast]


def proved(judge: Judge, effect: float, increasing: bool) -> NDArray[np.bool_]:
    """Whether each of 200 runs of 20 looks ever proves non-inferiority of a treatment with this relative effect."""
    information = np.arange(1, 21) * 400.0
    (t, v), (c, _) = paths(1 + effect, 200, information, 1), paths(1.0, 200, information, 2)
    contrasts = [
        judge(Estimate(a, s, 100), Estimate(b, s, 100), increasing)
        for a, b, s in zip(t.flat, c.flat, v.flat, strict=True)
    ]
    d = np.array([contrast.d for contrast in contrasts]).reshape(t.shape)
    variance = np.array([contrast.variance for contrast in contrasts]).reshape(t.shape)
    return np.asarray((log_e_one_sided(d, variance, tau2_for(2 / 8000, ALPHA, sided=1)) >= LEVEL).any(axis=1))


def right_way_up(judge: Judge, increasing: bool) -> bool:
    """A treatment that is worse by the margin is rarely proved harmless, an equal one nearly always."""
    worse = -MARGIN if increasing else MARGIN
    return keeps_alpha(proved(judge, worse, increasing)) and finds(proved(judge, 0.0, increasing))


WRONG_SIGNS: dict[str, Judge] = {
    "arms swapped": lambda t, c, up: noninferiority(c, t, MARGIN, increasing=up),
    "harm read as proof": lambda t, c, up: noninferiority(t, c, MARGIN, increasing=up).harm,
    "margin on the wrong side": lambda t, c, up: Contrast(
        t.value - (1 + MARGIN) * c.value if up else (1 - MARGIN) * c.value - t.value, t.variance + c.variance
    ),
    "more is taken for better, always, or less": lambda t, c, up: noninferiority(t, c, MARGIN, increasing=not up),
}


@pytest.mark.parametrize("increasing", [True, False])
def test_a_contrast_is_the_right_way_up(increasing: bool) -> None:
    assert right_way_up(lambda t, c, up: noninferiority(t, c, MARGIN, increasing=up), increasing)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("planted", WRONG_SIGNS)
def test_wrong_sign_of_a_contrast_is_caught(planted: str, increasing: bool) -> None:
    assert not right_way_up(WRONG_SIGNS[planted], increasing)


def test_wrong_sign_of_a_limit_is_caught() -> None:
    """The one-sided limit must stay below the truth at all looks; one published library adds where it must subtract."""
    d, v = paths(0.3, 1000, np.arange(1, 101.0), 3)
    ours = lower_limit(d, v, tau2_for(0.01, ALPHA, sided=1), ALPHA)
    planted = d + (d - ours)
    assert keeps_alpha((ours > 0.3).any(axis=1))
    assert not keeps_alpha((planted > 0.3).any(axis=1))


def test_wrong_sign_of_the_ratios_covariance_is_caught() -> None:
    x, y = clicks(np.random.default_rng(4), 2000)
    m, ours = Moments.from_values(x, y), ratio(Moments.from_values(x, y))
    assert ours is not None
    planted = (m.m_xx + 2 * ours.value * m.m_xy + ours.value**2 * m.m_yy) / (m.n - 1) / (m.mean_y**2 * m.n)
    assert ours.variance == pytest.approx(jackknife(x, y), rel=0.01)
    assert planted != pytest.approx(jackknife(x, y), rel=0.2)


def spending(rng: np.random.Generator, n: int) -> tuple[Array, Array]:
    """(value after, value before) of n users who keep their taste."""
    taste = rng.gamma(2.0, 1.0, n)
    return rng.poisson(4 * taste).astype(float), rng.poisson(4 * taste).astype(float)


def one_look(estimates: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """estimates: (d, V) of each run; a two-sided z test at its only look."""
    return np.array([abs(d) > 1.96 * math.sqrt(variance) for d, variance in estimates])


def test_wrong_sign_of_an_adjustment_is_caught() -> None:
    """μ + θ (c̄_a - c̄) adds the imbalance that it should take away, under a variance that says it was taken away."""
    rng, ours, planted = np.random.default_rng(5), [], []
    for _ in range(1500):
        (xt, ct), (xc, cc) = spending(rng, 200), spending(rng, 200)
        adjusted = adjusted_means(Moments.from_values(xt, None, ct), Moments.from_values(xc, None, cc))
        assert adjusted is not None
        contrast = difference(adjusted.treatment, adjusted.control)
        raw = xt.mean() - xc.mean()
        ours.append((contrast.d, contrast.variance))
        planted.append((2 * raw - contrast.d, contrast.variance))
    assert keeps_alpha(one_look(ours))
    assert not keeps_alpha(one_look(planted))


# Impressions as units ----------------------------------------------------------------------------------------------


def clicks(rng: np.random.Generator, users: int) -> tuple[Array, Array]:
    """(clicks, impressions) of users who differ in activity and in taste."""
    y = 1 + rng.poisson(np.exp(rng.normal(2.0, 1.0, users)))
    return rng.binomial(y, rng.beta(1, 9, users)).astype(float), y.astype(float)


def by_user(m: Moments) -> Estimate:
    estimate = ratio(m)
    assert estimate is not None
    return estimate


def by_impression(m: Moments) -> Estimate:
    """The planted error: every impression a coin of its own."""
    r = m.sx / m.sy
    return Estimate(r, r * (1 - r) / m.sy, m.n)


def click_paths(runs: int, looks: int, users: int, seed: int) -> list[list[tuple[Moments, Moments]]]:
    """A/A experiments: (treatment, control) at each look, `users` more in each arm at every one."""
    rng, experiments = np.random.default_rng(seed), []
    for _ in range(runs):
        t, c, seen = Moments.empty(), Moments.empty(), []
        for _ in range(looks):
            t, c = t + Moments.from_values(*clicks(rng, users)), c + Moments.from_values(*clicks(rng, users))
            seen.append((t, c))
        experiments.append(seen)
    return experiments


def test_impressions_as_units_are_caught_and_no_sequential_method_repairs_them() -> None:
    experiments = click_paths(300, 15, 100, 6)

    def false_alarms(estimate: Callable[[Moments], Estimate]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(a z test at the end only, the always-valid test at every look)."""
        looks = [[difference(estimate(t), estimate(c)) for t, c in seen] for seen in experiments]
        d = np.array([[look.d for look in seen] for seen in looks])
        v = np.array([[look.variance for look in seen] for seen in looks])
        tau2 = tau2_for(float(v[:, -1].mean()), ALPHA, sided=2)
        return one_look(list(zip(d[:, -1], v[:, -1], strict=True))), (log_e_two_sided(d, v, tau2) >= LEVEL).any(axis=1)

    assert all(keeps_alpha(alarms) for alarms in false_alarms(by_user))
    assert not any(keeps_alpha(alarms) for alarms in false_alarms(by_impression))


# Variance without covariance ---------------------------------------------------------------------------------------


def jackknife(x: Array, y: Array) -> float:
    """The variance of Σx / Σy by leaving out one user at a time."""
    without = (x.sum() - x) / (y.sum() - y)
    return float((x.size - 1) / x.size * ((without - without.mean()) ** 2).sum())


def searching(rng: np.random.Generator, users: int) -> tuple[Array, Array]:
    """(clicks, impressions) of users who see more the less they find: the two are negatively correlated."""
    patience = rng.normal(0, 0.8, users)
    return rng.poisson(25 * np.exp(-patience)).astype(float), 1.0 + rng.poisson(50 * np.exp(patience))


def without_covariance(m: Moments) -> Estimate:
    r = m.sx / m.sy
    return Estimate(r, (m.m_xx + r * r * m.m_yy) / (m.n - 1) / (m.mean_y**2 * m.n), m.n)


@pytest.mark.parametrize("world", [clicks, searching])
def test_a_ratio_without_covariance_is_caught_by_the_jackknife(
    world: Callable[[np.random.Generator, int], tuple[Array, Array]],
) -> None:
    x, y = world(np.random.default_rng(7), 3000)
    m, reference = Moments.from_values(x, y), jackknife(x, y)
    assert by_user(m).variance == pytest.approx(reference, rel=0.01)
    assert without_covariance(m).variance != pytest.approx(reference, rel=0.1)


def test_a_ratio_without_covariance_cries_wolf_where_it_is_negative() -> None:
    rng = np.random.default_rng(8)
    arms = [[Moments.from_values(*searching(rng, 400)) for _ in range(2)] for _ in range(600)]

    def alarms(estimate: Callable[[Moments], Estimate]) -> NDArray[np.bool_]:
        contrasts = [difference(estimate(t), estimate(c)) for t, c in arms]
        return one_look([(contrast.d, contrast.variance) for contrast in contrasts])

    assert keeps_alpha(alarms(by_user))
    assert not keeps_alpha(alarms(without_covariance))


def test_an_adjusted_variance_without_covariance_is_caught_by_regression() -> None:
    """Reference: least squares of the value on arm and covariate; its residuals' variance within each arm."""
    rng = np.random.default_rng(9)
    (xt, ct), (xc, cc) = spending(rng, 500), spending(rng, 400)
    arm = np.repeat([1.0, 0.0], [500, 400])
    design = np.column_stack([arm, np.ones(900), np.concatenate([ct, cc])])
    x = np.concatenate([xt, xc])
    coefficients = np.linalg.lstsq(design, x, rcond=None)[0]
    residual = x - design @ coefficients
    reference = [residual[arm == 1].var(ddof=1) / 500, residual[arm == 0].var(ddof=1) / 400]
    adjusted = adjusted_means(Moments.from_values(xt, None, ct), Moments.from_values(xc, None, cc))
    assert adjusted is not None
    theta = adjusted.theta[0]
    planted = [(x.var(ddof=1) + theta**2 * c.var(ddof=1)) / x.size for x, c in ((xt, ct), (xc, cc))]
    assert [adjusted.treatment.variance, adjusted.control.variance] == pytest.approx(reference, rel=1e-9)
    assert planted != pytest.approx(reference, rel=0.5)


def test_a_control_taken_for_known_is_caught() -> None:
    """Planted: the margin's variance without the control's own noise, V_T alone."""
    information = np.arange(1, 51.0) * 100
    (t, v), (c, _) = paths(0.9, 1000, information, 10), paths(1.0, 1000, information, 11)
    ours = noninferiority(Estimate(0.9, v[0, -1], 100), Estimate(1.0, v[0, -1], 100), 0.1).variance / v[0, -1]
    tau2 = tau2_for(2 / 5000, ALPHA, sided=1)
    assert keeps_alpha((log_e_one_sided(t - 0.9 * c, ours * v, tau2) >= LEVEL).any(axis=1))
    assert not keeps_alpha((log_e_one_sided(t - 0.9 * c, v, tau2) >= LEVEL).any(axis=1))


# Peeking without correction ----------------------------------------------------------------------------------------


def test_peeking_without_correction_is_caught() -> None:
    d, v = paths(0.0, 2000, np.arange(1, 201.0), 12)
    z, tau2 = d / np.sqrt(v), tau2_for(1 / 200, ALPHA, sided=1)
    assert keeps_alpha((log_e_one_sided(d, v, tau2) >= LEVEL).any(axis=1))
    assert keeps_alpha((log_e_two_sided(d, v, tau2) >= LEVEL).any(axis=1))
    low, high = confidence_sequence(d, v, tau2, ALPHA)
    assert keeps_alpha(((low > 0) | (high < 0)).any(axis=1))
    assert not keeps_alpha((z >= norm.isf(ALPHA)).any(axis=1))
    assert not keeps_alpha((abs(z) >= norm.isf(ALPHA / 2)).any(axis=1))


def test_peeking_at_a_planned_horizon_with_the_level_of_one_look_is_caught() -> None:
    d, v = paths(0.0, 4000, np.arange(1, 301.0), 13)
    highest = (d / np.sqrt(v) * np.sqrt(1 / (300 * v))).max(axis=1)
    assert keeps_alpha(highest >= reflection_critical(ALPHA, sided=1))
    assert not keeps_alpha(highest >= norm.isf(ALPHA))


def test_peeking_at_the_split_with_a_chi_square_is_caught() -> None:
    first = np.random.default_rng(14).binomial(500, 0.5, (400, 40)).cumsum(axis=1)
    n = 500 * np.arange(1, 41)
    alarms = np.array(
        [
            max(log_e_srm([int(a), int(b - a)], [0.5, 0.5], concentration=100) for a, b in zip(path, n, strict=True))
            for path in first
        ]
    )
    assert keeps_alpha(alarms >= LEVEL)
    assert not keeps_alpha(((2 * first - n) ** 2 / n >= chi2.isf(ALPHA, 1)).any(axis=1))


def test_peeking_at_a_band_of_one_look_is_caught() -> None:
    """The distance of an empirical distribution from the truth: a band for one n against one for all n."""
    values, sizes = np.random.default_rng(15).random((300, 6000)), np.arange(100, 6001, 100)

    def distance(sample: Array) -> float:
        ordered, grid = np.sort(sample), np.arange(sample.size + 1) / sample.size
        return float(max((grid[1:] - ordered).max(), (ordered - grid[:-1]).max()))

    away = np.array([[distance(run[:n]) for n in sizes] for run in values])
    assert keeps_alpha((away > [band_radius(int(n), ALPHA, start=100) for n in sizes]).any(axis=1))
    assert not keeps_alpha((away > np.sqrt(math.log(2 / ALPHA) / (2 * sizes))).any(axis=1))


def test_a_veto_for_each_of_many_guardrails_at_the_full_alpha_is_caught() -> None:
    """Peeking at metrics instead of looks: ten guardrails, any of which rolls back."""
    information = np.geomspace(1, 1e4, 100)
    d, v = paths(0.0, 10_000, information, 16)
    highest = log_e_one_sided(d, v, tau2_for(0.01, ALPHA, sided=1)).max(axis=1).reshape(1000, 10).max(axis=1)
    assert keeps_alpha(highest >= rollback_threshold(ALPHA, 10))
    assert not keeps_alpha(highest >= rollback_threshold(ALPHA, 1))


# tau refitted at each look -----------------------------------------------------------------------------------------

REFITTED: dict[str, Callable[[Array, Array], Array]] = {
    "to the effect seen so far": lambda d, v: np.maximum(d * d - v, 1e-12),
    "to the information so far": lambda _d, v: tau2_for(1.0, ALPHA, sided=1) * v,
    "to the estimate itself": lambda d, _v: np.maximum(d * d, 1e-12),
}


def long_run(sided: int, tau2: Callable[[Array, Array], Array | float]) -> NDArray[np.bool_]:
    """False alarms of 3,000 runs whose information grows a million times: room for a flattering tau to be found."""
    d, v = paths(0.0, 3000, np.geomspace(1, 1e6, 300), 17)
    log_e = log_e_one_sided if sided == 1 else log_e_two_sided
    return np.asarray((log_e(d, v, tau2(d, v)) >= LEVEL).any(axis=1))


@pytest.mark.parametrize("sided", [1, 2])
@pytest.mark.parametrize("planned", [1.0, 1e-3, 1e-6])
def test_a_tau_fixed_beforehand_keeps_alpha_wherever_it_was_planned(sided: int, planned: float) -> None:
    assert keeps_alpha(long_run(sided, lambda _d, _v: tau2_for(planned, ALPHA, sided=1)))


@pytest.mark.parametrize("sided", [1, 2])
@pytest.mark.parametrize("refit", REFITTED)
def test_tau_refitted_at_each_look_is_caught(refit: str, sided: int) -> None:
    assert not keeps_alpha(long_run(sided, REFITTED[refit]))
