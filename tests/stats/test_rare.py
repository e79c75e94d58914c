"""Rare errors: against integration, under peeking, and the right way up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from stats.errors import StatsError
from stats.rare import log_e_fewer_errors, log_e_more_errors


@pytest.mark.parametrize(("t", "c", "share", "ratio"), [(7, 2, 0.5, 1.0), (3, 40, 0.05, 1.5), (0, 5, 0.5, 1.2)])
def test_it_is_the_integral_over_the_truncated_prior(t: int, c: int, share: float, ratio: float) -> None:
    p0 = ratio * share / (ratio * share + 1 - share)
    prior = stats.beta(20 * p0, 20 * (1 - p0))
    total = integrate.quad(lambda p: prior.pdf(p) * (p / p0) ** t * ((1 - p) / (1 - p0)) ** c, p0, 1, epsabs=1e-13)[0]
    expected = math.log(total / prior.sf(p0))
    assert log_e_more_errors(t, c, share=share, ratio=ratio) == pytest.approx(expected, abs=1e-8)


def test_polarity_more_errors_in_the_treatment_are_harm() -> None:
    assert log_e_more_errors(30, 5, share=0.5) > math.log(100)
    assert log_e_more_errors(5, 30, share=0.5) < 0
    assert log_e_fewer_errors(5, 30, share=0.5) > math.log(100)
    assert log_e_fewer_errors(30, 5, share=0.5) < 0


def test_arms_swap_with_their_shares() -> None:
    assert log_e_more_errors(9, 4, share=0.3) == pytest.approx(log_e_fewer_errors(4, 9, share=0.7), abs=1e-12)


def test_planted_error_ignoring_the_share_of_exposure_sees_harm_in_a_small_control() -> None:
    assert log_e_more_errors(95, 5, share=0.95) < 0.5
    assert log_e_more_errors(95, 5, share=0.5) > math.log(1000)


def crossed(p: float, ratio: float, runs: int) -> float:
    rng = np.random.default_rng(8)
    hits = (rng.random((runs, 120)) < p).cumsum(axis=1)
    found = 0
    for path in hits:
        found += any(
            log_e_more_errors(int(h), n - int(h), share=0.5, ratio=ratio) >= math.log(20)
            for n, h in enumerate(path, start=1)
        )
    return found / runs


def test_looking_after_every_single_error_keeps_alpha_and_finds_doubling() -> None:
    assert crossed(0.5, 1.0, 300) <= 0.05 + 0.02
    assert crossed(1.2 / 2.2, 1.2, 300) <= 0.05 + 0.02
    assert crossed(2 / 3, 1.0, 100) > 0.7


def test_overwhelming_evidence_the_other_way_is_zero_not_an_error() -> None:
    assert log_e_more_errors(0, 1_000_000, share=0.5) < -5


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: log_e_more_errors(1, 1, share=0.0), "share"),
        (lambda: log_e_more_errors(1, 1, share=0.5, ratio=0.0), "ratio"),
        (lambda: log_e_more_errors(-1, 1, share=0.5), "errors"),
        (lambda: log_e_fewer_errors(1, 1, share=0.5, concentration=0.0), "concentration"),
    ],
)
def test_impossible_errors_are_refused(call, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        call()
    assert caught.value.field == field
