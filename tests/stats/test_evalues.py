"""Latching: the maximum, never less than before, and the p-value that goes with it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.errors import StatsError
from stats.evalues import latch, p_value


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_latched_evidence_never_falls(path: list[float]) -> None:
    latched, previous = 0.0, 0.0
    for log_e in path:
        latched = latch(latched, log_e)
        assert latched >= previous
        previous = latched
    assert latched == max(0.0, *path)


@pytest.mark.parametrize(
    ("log_e", "p"), [(-3.0, 1.0), (0.0, 1.0), (math.log(20), 0.05), (5000.0, 0.0), (math.inf, 0.0)]
)
def test_p_is_the_inverse_of_the_evidence_and_at_most_one(log_e: float, p: float) -> None:
    assert p_value(log_e) == pytest.approx(p)


def test_nan_is_refused() -> None:
    with pytest.raises(StatsError):
        latch(math.nan, 1.0)
    with pytest.raises(StatsError):
        p_value(math.nan)
