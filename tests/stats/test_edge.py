"""The edge: known roots, in both directions, of functions that bend either way; infinity where nothing is rejected."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stats.edge import edge

ROOTED = {
    "line": lambda u: u - 1,
    "convex": lambda u: math.expm1(3 * (u - 1)),
    "concave": lambda u: -math.expm1(-3 * (u - 1)),
    "cubic": lambda u: (u - 1) ** 3 + 0.01 * (u - 1),
    "unknown at first": lambda u: -math.inf if u < 0.6 else u * u - 1,
    "steep, then flat": lambda u: math.atan(40 * (u - 1)),
    "a step": lambda u: -1.0 if u < 1 else 1.0,
}
"""Functions of the distance from the centre with their root at 1."""


@pytest.mark.parametrize("shape", ROOTED)
@given(centre=st.floats(-5, 5), distance=st.floats(1e-3, 1e3), guess=st.floats(0.02, 3), sign=st.sampled_from([-1, 1]))
def test_the_root_is_found(shape: str, centre: float, distance: float, guess: float, sign: int) -> None:
    found = edge(lambda q: ROOTED[shape](sign * (q - centre) / distance), centre, sign * guess * distance)
    expected = centre + sign * distance
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-10 * (abs(centre) + distance))


@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_rejected_is_infinite_in_the_direction_of_the_search(sign: int) -> None:
    assert edge(lambda _: -1.0, 2.0, sign * 0.1) == sign * math.inf


def test_the_edge_nearest_to_the_centre_is_taken() -> None:
    assert edge(lambda q: math.sin(q) - 0.5, 0.0, 0.5) == pytest.approx(math.pi / 6, rel=1e-12)


def test_a_good_guess_needs_few_calls() -> None:
    calls = []

    def excess(q: float) -> float:
        calls.append(q)
        return q * q - 2

    assert edge(excess, 0.0, 1.5) == pytest.approx(math.sqrt(2), rel=1e-15)
    assert len(calls) <= 9
