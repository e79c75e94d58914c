"""Estimates: hand-checked values, variances that match repeated sampling, and None where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest

from stats.errors import StatsError
from stats.estimate import Estimate, mean, ratio
from stats.moments import Moments


def test_mean_by_hand() -> None:
    estimate = mean(Moments.from_values(np.array([1.0, 2.0, 6.0])))
    assert estimate is not None
    assert (estimate.value, estimate.variance, estimate.n) == (3.0, pytest.approx(7 / 3), 3)


def test_ratio_by_hand_is_the_variance_of_the_score() -> None:
    x, y = np.array([1.0, 0.0, 3.0, 2.0]), np.array([10.0, 4.0, 11.0, 25.0])
    estimate = ratio(Moments.from_values(x, y))
    assert estimate is not None
    score = (x - 0.12 * y) / y.mean()
    assert estimate.value == pytest.approx(0.12)
    assert estimate.variance == pytest.approx(score.var(ddof=1) / 4, rel=1e-13)


def clustered(rng: np.random.Generator, users: int) -> tuple[np.ndarray, np.ndarray]:
    impressions = 1 + rng.poisson(np.exp(rng.normal(2.0, 1.0, users)))
    return rng.binomial(impressions, rng.beta(1, 19, users)).astype(float), impressions.astype(float)


def test_ratio_variance_matches_repeated_sampling_and_impressions_as_units_do_not() -> None:
    rng = np.random.default_rng(11)
    values, ours, naive = [], [], []
    for _ in range(600):
        x, y = clustered(rng, 1000)
        estimate = ratio(Moments.from_values(x, y))
        assert estimate is not None
        values.append(estimate.value)
        ours.append(estimate.variance)
        naive.append(estimate.value * (1 - estimate.value) / y.sum())
    truth = np.var(values)
    assert np.mean(ours) == pytest.approx(truth, rel=0.15)
    assert np.mean(naive) < 0.6 * truth


def test_planted_error_a_variance_without_the_covariance_is_far_off() -> None:
    x, y = clustered(np.random.default_rng(3), 5000)
    m = Moments.from_values(x, y)
    estimate = ratio(m)
    assert estimate is not None
    planted = (m.m_xx + estimate.value**2 * m.m_yy) / (m.n - 1) / (m.mean_y**2 * m.n)
    assert planted > 1.2 * estimate.variance


@pytest.mark.parametrize("estimator", [mean, ratio])
@pytest.mark.parametrize("moments", [Moments.empty(), Moments.from_values(np.array([1.0]))])
def test_too_few_users_is_none(estimator, moments: Moments) -> None:
    assert estimator(moments) is None


def test_ratio_without_impressions_is_none() -> None:
    assert ratio(Moments.from_values(np.zeros(3), np.zeros(3))) is None


def test_estimate_refuses_nonsense() -> None:
    for arguments, field in [((float("nan"), 1.0, 2), "estimate"), ((0.0, -1.0, 2), "variance"), ((0.0, 1.0, 0), "n")]:
        with pytest.raises(StatsError) as caught:
            Estimate(*arguments)
        assert caught.value.field == field
