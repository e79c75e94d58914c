"""At the edge of its hypothesis an e-value has mean 1, exactly; errors planted in the formulas break that."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from scipy import integrate
from scipy.stats import binom, norm

from stats.mixture import log_e_one_sided, log_e_two_sided
from stats.rare import log_e_more_errors
from stats.srm import INVALID_LOG_E, log_e_srm


def mean_over_z(log_e: Callable[[float], float]) -> float:
    """E[e] when z is standard normal, by integration."""
    return float(integrate.quad(lambda z: math.exp(log_e(z)) * norm.pdf(z), -25, 25, points=[0.0], epsabs=1e-12)[0])


def mean_over_counts(log_e: Callable[[int], float], n: int, p: float) -> float:
    """E[e] when the count is binomial, by summation."""
    return sum(math.exp(log_e(k)) * float(binom.pmf(k, n, p)) for k in range(n + 1))


def one_sided_without_normaliser(z: float, x: float) -> float:
    return log_e_one_sided(z, 1.0, x) + 0.5 * math.log1p(x)


def one_sided_without_the_cut(z: float, x: float) -> float:
    """The two-sided value doubled: the other half of the prior is still in it."""
    return log_e_two_sided(z, 1.0, x) + math.log(2)


def one_sided_without_the_doubling(z: float, x: float) -> float:
    return log_e_one_sided(z, 1.0, x) - math.log(2)


@pytest.mark.parametrize("x", [0.1, 1.0, 6.3])
def test_mixtures_have_mean_one_and_planted_errors_have_not(x: float) -> None:
    """x = tau² / V."""
    assert mean_over_z(lambda z: log_e_two_sided(z, 1.0, x)) == pytest.approx(1, abs=1e-9)
    assert mean_over_z(lambda z: log_e_one_sided(z, 1.0, x)) == pytest.approx(1, abs=1e-9)
    for planted in (one_sided_without_normaliser, one_sided_without_the_cut, one_sided_without_the_doubling):
        assert mean_over_z(lambda z, planted=planted: planted(z, x)) != pytest.approx(1, abs=0.04), planted.__name__


def test_a_one_sided_mixture_is_fair_for_the_whole_null_and_a_two_sided_one_is_not() -> None:
    """Planted: the two-sided value as proof of an improvement. A harm of two standard errors is "proof" too."""
    for harm in (0.5, 2.0):
        assert mean_over_z(lambda z, harm=harm: log_e_one_sided(z - harm, 1.0, 6.3)) < 1
        assert mean_over_z(lambda z, harm=harm: log_e_two_sided(z - harm, 1.0, 6.3)) > 1.05


def test_a_sample_ratio_upside_down_is_caught() -> None:
    def ours(first: int, n: int) -> float:
        return log_e_srm([first, n - first], [0.4, 0.6], concentration=50)

    assert mean_over_counts(lambda k: ours(k, 60), 60, 0.4) == pytest.approx(1, abs=1e-9)
    assert mean_over_counts(lambda k: -ours(k, 60), 60, 0.4) > 1.1
    assert ours(300, 500) > INVALID_LOG_E > -ours(300, 500), "a split of 60/40 instead of 40/60"


def test_wrong_odds_or_swapped_arms_in_rare_errors_are_caught() -> None:
    def ours(t: int) -> float:
        return log_e_more_errors(t, 40 - t, share=0.3, ratio=1.5)

    edge = 0.45 / (0.45 + 0.7)
    assert mean_over_counts(ours, 40, edge) == pytest.approx(1, abs=1e-9)
    assert mean_over_counts(ours, 40, 0.3) < 1, "errors well within the ratio"
    assert mean_over_counts(lambda t: ours(40 - t), 40, edge) > 1.2, "planted: the arms swapped"
    assert mean_over_counts(lambda t: log_e_more_errors(t, 40 - t, share=0.3), 40, edge) > 1.2, "planted: no ratio"
    assert mean_over_counts(lambda t: log_e_more_errors(t, 40 - t, share=0.2, ratio=1.5), 40, edge) > 1.2, "share"
