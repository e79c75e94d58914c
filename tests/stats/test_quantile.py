"""Latency bands: coverage at every look, rounding outwards, and merging."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stats.errors import StatsError
from stats.quantile import MILLISECONDS, Buckets, band_radius, quantile, quantile_band


def test_a_value_lies_in_the_bucket_it_is_counted_in() -> None:
    buckets = Buckets(1.0, 2.0, 3)
    assert buckets.place([0.0, 0.5, 1.0, 1.9, 2.0, 7.9, 8.0, 100.0]).tolist() == [2, 2, 1, 1, 2]


def test_edges_fall_into_their_own_bucket() -> None:
    edges = [MILLISECONDS.edge(i) for i in range(MILLISECONDS.count)]
    counts = MILLISECONDS.place(edges)
    assert (counts[1:-1] == 1).all()


def test_quantiles_are_within_a_bucket() -> None:
    values = np.random.default_rng(1).lognormal(3, 0.5, 20_000)
    counts = MILLISECONDS.place(values)
    for p in (0.5, 0.95, 0.99):
        found = quantile(counts, p)
        assert found is not None
        assert 0 <= found / np.quantile(values, p) - 1 < 0.0101


def test_bands_hold_for_three_quantiles_at_every_look() -> None:
    rng = np.random.default_rng(2)
    truth = {p: math.exp(3 + 0.5 * z) for p, z in ((0.5, 0.0), (0.95, 1.6449), (0.99, 2.3263))}
    missed = 0
    for _ in range(60):
        counts = np.zeros(MILLISECONDS.count + 2, dtype=np.int64)
        inside = True
        for _ in range(20):
            counts += MILLISECONDS.place(rng.lognormal(3, 0.5, 200))
            for p, value in truth.items():
                band = quantile_band(counts, p, 0.05)
                assert band is not None
                inside = inside and band[0] <= value <= band[1]
        missed += not inside
    assert missed <= 6


def test_a_shifted_arm_is_visible() -> None:
    rng = np.random.default_rng(3)
    slow = quantile_band(MILLISECONDS.place(rng.lognormal(3.2, 0.5, 50_000)), 0.95, 0.025)
    fast = quantile_band(MILLISECONDS.place(rng.lognormal(3.0, 0.5, 50_000)), 0.95, 0.025)
    assert slow is not None
    assert fast is not None
    assert slow[0] > fast[1]


def test_too_few_values_and_unbounded_sides() -> None:
    assert quantile_band(MILLISECONDS.place(np.ones(99)), 0.5, 0.05) is None
    assert quantile(MILLISECONDS.place([]), 0.5) is None
    band = quantile_band(MILLISECONDS.place(np.ones(100)), 0.99, 0.05)
    assert band is not None
    assert band[1] == math.inf
    assert quantile(MILLISECONDS.place([1e9]), 0.5) == math.inf


def test_the_radius_shrinks_with_values_and_grows_with_confidence() -> None:
    radii = [band_radius(n, 0.05, start=100) for n in (100, 1000, 100_000)]
    assert radii == sorted(radii, reverse=True)
    assert band_radius(1000, 0.01, start=100) > radii[1]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: quantile_band(np.zeros(5), 0.5, 0.05), "counts"),
        (lambda: quantile_band(np.zeros(MILLISECONDS.count + 2), 1.0, 0.05), "p"),
        (lambda: quantile(np.zeros(3), 0.0), "p"),
        (lambda: MILLISECONDS.place([-1.0]), "values"),
        (lambda: band_radius(10, 0.05, start=100), "n"),
        (lambda: band_radius(100, 0.0, start=100), "alpha"),
        (lambda: Buckets(0.0, 1.01, 5), "buckets"),
    ],
)
def test_impossible_histograms_are_refused(call, field: str) -> None:
    with pytest.raises(StatsError) as caught:
        call()
    assert caught.value.field == field
