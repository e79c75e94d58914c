"""CUPED: the same answer as regression, less variance where history explains, no bias, and newcomers handled."""

from __future__ import annotations

import numpy as np
import pytest

from stats.contrast import difference
from stats.cuped import Adjusted, History, adjusted_means, adjusted_ratios
from stats.errors import StatsError
from stats.moments import Moments


def people(rng: np.random.Generator, n: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x after, c before, returning) with correlation through a shared taste; newcomers (30 %) behave differently."""
    taste = rng.gamma(2.0, 1.0, n)
    returning = rng.random(n) < 0.7
    x = rng.poisson(taste * np.where(returning, 3.0, 1.0) * (1 + lift)).astype(float)
    c = np.where(returning, rng.poisson(3 * taste), 0).astype(float)
    return x, c, returning


def history(x: np.ndarray, c: np.ndarray, returning: np.ndarray) -> History:
    return History(
        Moments.from_values(x[returning], None, c[returning]), Moments.from_values(x[~returning], None, c[~returning])
    )


def regression(arms: list[tuple[np.ndarray, ...]]) -> float:
    """The arm's coefficient in a least-squares fit of x on an arm dummy and the covariates."""
    rows = [np.column_stack([np.full(len(a[0]), i), np.ones(len(a[0])), *a[1:]]) for i, a in enumerate(arms)]
    return float(np.linalg.lstsq(np.vstack(rows), np.concatenate([a[0] for a in arms]), rcond=None)[0][0])


def test_the_difference_is_the_regression_coefficient() -> None:
    rng = np.random.default_rng(1)
    (xc, cc, _), (xt, ct, _) = people(rng, 700), people(rng, 500, 0.1)
    adjusted = adjusted_means(Moments.from_values(xt, None, ct), Moments.from_values(xc, None, cc))
    assert adjusted is not None
    got = adjusted.treatment.value - adjusted.control.value
    assert got == pytest.approx(regression([(xc, cc), (xt, ct)]), rel=1e-9)


def test_with_history_the_difference_is_the_regression_on_both_covariates() -> None:
    rng = np.random.default_rng(2)
    c, t = people(rng, 700), people(rng, 500, 0.1)
    adjusted = adjusted_means(history(*t), history(*c))
    assert adjusted is not None
    expected = regression([(c[0], c[1], c[2].astype(float)), (t[0], t[1], t[2].astype(float))])
    assert adjusted.treatment.value - adjusted.control.value == pytest.approx(expected, rel=1e-9)


def test_the_history_indicator_removes_more_variance_than_the_covariate_alone() -> None:
    rng = np.random.default_rng(3)
    c, t = people(rng, 4000), people(rng, 4000)
    plain = adjusted_means(Moments.from_values(t[0], None, t[1]), Moments.from_values(c[0], None, c[1]))
    full = adjusted_means(history(*t), history(*c))
    assert plain is not None
    assert full is not None
    assert full.variance_left < plain.variance_left < 0.8
    assert len(full.theta) == 2


def repeated(lift: float, runs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, ours, variances, raw = np.random.default_rng(4), [], [], []
    for _ in range(runs):
        (xc, cc, _), (xt, ct, _) = people(rng, 400), people(rng, 400, lift)
        adjusted = adjusted_means(Moments.from_values(xt, None, ct), Moments.from_values(xc, None, cc))
        assert adjusted is not None
        contrast = difference(adjusted.treatment, adjusted.control)
        ours.append(contrast.d)
        variances.append(contrast.variance)
        raw.append(xt.mean() - xc.mean())
    return np.array(ours), np.array(variances), np.array(raw)


def test_adjustment_is_unbiased_and_its_variance_is_right() -> None:
    ours, variances, raw = repeated(0.1, 500)
    assert ours.mean() == pytest.approx(raw.mean(), abs=4 * raw.std() / 500**0.5)
    assert variances.mean() == pytest.approx(ours.var(), rel=0.2)
    assert ours.var() < 0.75 * raw.var()


def test_planted_error_a_covariate_measured_after_exposure_hides_the_effect() -> None:
    rng = np.random.default_rng(5)
    xc, xt = rng.poisson(5, 4000).astype(float), rng.poisson(6, 4000).astype(float)
    after = adjusted_means(Moments.from_values(xt, None, xt), Moments.from_values(xc, None, xc))
    assert after is not None
    assert abs(after.treatment.value - after.control.value) < 0.2, "the effect of 1 is gone: why c must come before"


def ratio_arm(rng: np.random.Generator, n: int) -> Moments:
    taste, activity = rng.beta(1, 19, n), rng.lognormal(3, 1, n)
    pre_y, y = 1 + rng.poisson(activity), 1 + rng.poisson(activity)
    pre_x, x = rng.binomial(pre_y, taste), rng.binomial(y, taste)
    return Moments.from_values(x, y, pre_x - 0.05 * pre_y)


def test_ratio_adjustment_halves_the_variance_and_stays_right() -> None:
    rng = np.random.default_rng(6)
    results = [adjusted_ratios(ratio_arm(rng, 800), ratio_arm(rng, 800)) for _ in range(400)]
    kept = [r for r in results if isinstance(r, Adjusted)]
    d = np.array([r.treatment.value - r.control.value for r in kept])
    v = np.array([r.treatment.variance + r.control.variance for r in kept])
    assert v.mean() == pytest.approx(d.var(), rel=0.25)
    assert np.mean([r.variance_left for r in kept]) < 0.6


def test_without_a_covariate_nothing_changes() -> None:
    x = np.random.default_rng(7).exponential(1, (2, 50))
    adjusted = adjusted_means(Moments.from_values(x[0]), Moments.from_values(x[1]))
    assert adjusted is not None
    assert adjusted.variance_left == pytest.approx(1)
    assert adjusted.treatment.value == pytest.approx(x[0].mean())


def test_too_little_data_is_none_and_newcomers_with_history_are_refused() -> None:
    assert adjusted_means(Moments.empty(), Moments.empty()) is None
    assert adjusted_ratios(Moments.empty(), Moments.empty()) is None
    with pytest.raises(StatsError, match="newcomers"):
        History(Moments.empty(), Moments.from_values([1.0, 2.0], None, [0.0, 1.0]))
