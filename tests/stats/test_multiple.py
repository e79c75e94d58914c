"""Multiple claims: Holm as statsmodels has it, e-BH by its definition."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from stats.errors import StatsError
from stats.multiple import e_bh, holm


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels_holm(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


@given(st.lists(st.floats(-3, 8), min_size=1, max_size=6), st.sampled_from([0.05, 0.2]))
def test_e_bh_rejects_the_largest_self_consistent_set(log_e: list[float], alpha: float) -> None:
    """Every rejected e-value is at least K / (alpha R), and no larger set has that property."""
    rejected = e_bh(log_e, alpha)
    best = 0
    for size in range(1, len(log_e) + 1):
        for chosen in itertools.combinations(log_e, size):
            if all(math.exp(e) >= len(log_e) / (alpha * size) * (1 + 1e-9) for e in chosen):
                best = size
    assert sum(rejected) >= best
    for e, yes in zip(log_e, rejected, strict=True):
        if yes:
            assert math.exp(e) >= len(log_e) / (alpha * sum(rejected)) * (1 - 1e-9)


def test_e_bh_by_hand() -> None:
    assert e_bh([math.log(100), math.log(25), 0.0, math.log(39)], 0.1) == [True, True, False, True]
    assert e_bh([], 0.1) == []


def test_nonsense_is_refused() -> None:
    with pytest.raises(StatsError, match="p_values"):
        holm([0.5, 1.5])
    with pytest.raises(StatsError, match="alpha"):
        e_bh([1.0], 0.0)
    with pytest.raises(StatsError, match="log_e_values"):
        e_bh([math.nan], 0.1)
