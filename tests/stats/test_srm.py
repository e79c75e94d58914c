"""SRM: a fair split is left alone at every look, an unfair one is found, and arms are interchangeable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import dirichlet_multinomial, multinomial

from stats.errors import StatsError
from stats.srm import INVALID_LOG_E, concentration_for, log_e_srm


def test_no_users_is_no_evidence() -> None:
    assert log_e_srm([0, 0], [0.5, 0.5], concentration=2500) == 0


def test_it_is_the_ratio_of_the_two_likelihoods() -> None:
    """Against scipy's own Dirichlet-multinomial and multinomial, whose coefficients cancel in the ratio."""
    counts, shares, k = [120, 80, 200], [0.25, 0.25, 0.5], 100.0
    alternative = dirichlet_multinomial.logpmf(counts, k * np.array(shares), 400)
    assert log_e_srm(counts, shares, concentration=k) == pytest.approx(
        alternative - multinomial.logpmf(counts, 400, shares), abs=1e-9
    )


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=2))
def test_equal_arms_are_interchangeable(counts: list[int]) -> None:
    forward = log_e_srm(counts, [0.5, 0.5], concentration=2500)
    assert forward == pytest.approx(log_e_srm(counts[::-1], [0.5, 0.5], concentration=2500), abs=1e-9)


def test_swapped_shares_are_caught() -> None:
    """Planted error: the counts of a 10/90 split read with the shares the other way round."""
    assert log_e_srm([100, 900], [0.1, 0.9], concentration=2500) < 0
    assert log_e_srm([100, 900], [0.9, 0.1], concentration=2500) > INVALID_LOG_E


def crossed(share: float, runs: int, users: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(runs):
        first = rng.binomial(users // 50, share, 50).cumsum()
        total = (users // 50) * np.arange(1, 51)
        peak = max(
            log_e_srm([int(a), int(n - a)], [0.5, 0.5], concentration=2500) for a, n in zip(first, total, strict=True)
        )
        found += peak >= INVALID_LOG_E
    return found / runs


def test_fair_splits_are_left_alone_and_unfair_ones_found_under_peeking() -> None:
    assert crossed(0.5, 150, 100_000, 1) == 0
    assert crossed(0.51, 60, 200_000, 2) == 1


def test_concentration_for_the_deviation_that_matters() -> None:
    assert concentration_for(0.01) == pytest.approx(2500)
    assert concentration_for(0.005) == pytest.approx(10_000)


def test_invalid_evidence_is_a_thousand_to_one() -> None:
    assert math.exp(INVALID_LOG_E) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("counts", "shares", "k", "field"),
    [
        ([1, 2], [0.5, 0.3], 10.0, "shares"),
        ([1, 2], [1.0, 0.0], 10.0, "shares"),
        ([1], [1.0], 10.0, "counts"),
        ([1, 2, 3], [0.5, 0.5], 10.0, "counts"),
        ([-1, 2], [0.5, 0.5], 10.0, "counts"),
        ([1, 2], [0.5, 0.5], 0.0, "concentration"),
    ],
)
def test_impossible_splits_are_refused(counts: list[int], shares: list[float], k: float, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        log_e_srm(counts, shares, concentration=k)
    assert caught.value.field == field


def test_concentration_for_no_deviation_is_refused() -> None:
    with pytest.raises(StatsError, match="delta"):
        concentration_for(0.0)
