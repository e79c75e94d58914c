"""Crossing probabilities: closed forms, published group-sequential constants, and Monte-Carlo."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from stats.crossing import crossing_probabilities, expected_stop
from stats.errors import StatsError


def test_one_look_is_a_z_test() -> None:
    p = crossing_probabilities([4.0], [1.6449], effect=1.0)
    assert p == pytest.approx([ndtr(2.0 - 1.6449)], abs=1e-12)


def test_a_look_without_a_boundary_changes_nothing() -> None:
    p = crossing_probabilities([1.0, 4.0], [np.inf, 1.6449], effect=1.0)
    assert p == pytest.approx([0.0, ndtr(2.0 - 1.6449)], abs=1e-8)


def test_the_pocock_constant_of_five_looks() -> None:
    """Jennison & Turnbull (2000), table 2.1: c = 2.413 for a two-sided 5 % test; one side of it has 2.5 %."""
    assert crossing_probabilities(np.arange(1, 6), np.full(5, 2.413), effect=0.0).sum() == pytest.approx(
        0.025, abs=2e-4
    )


def test_it_agrees_with_simulation() -> None:
    rng = np.random.default_rng(1)
    information = np.geomspace(1, 50, 30)
    steps = np.diff(information, prepend=0)
    s = (rng.standard_normal((40_000, 30)) * np.sqrt(steps) + 0.3 * steps).cumsum(axis=1)
    hit = s / np.sqrt(information) >= 2.5
    first = np.where(hit.any(axis=1), hit.argmax(axis=1), 30)
    p = crossing_probabilities(information, np.full(30, 2.5), effect=0.3)
    assert p.sum() == pytest.approx((first < 30).mean(), abs=0.01)
    stops = information[np.minimum(first, 29)].mean()
    assert expected_stop(information, p) == pytest.approx(stops, rel=0.01)


def test_looks_must_grow() -> None:
    for bad in ([1.0, 1.0], [0.0, 1.0], []):
        with pytest.raises(StatsError, match="information"):
            crossing_probabilities(bad, [2.0] * len(bad), effect=0.0)
