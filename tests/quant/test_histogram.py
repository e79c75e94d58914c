from __future__ import annotations

import pytest
import torch

from quant import histogram
from quant.histogram import BINS, Magnitudes, edges, total


def test_values_fall_between_their_edges_and_zeros_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "_PIECE", 3)
    found = Magnitudes.of(torch.tensor([0.0, 1.5, -1.5, 2e3]), torch.tensor([[0.0], [3e-5]]))
    assert found.zeros == 2
    borders = edges()
    bins = {index: count for index, count in enumerate(found.counts) if count}
    assert sorted(bins.values()) == [1, 1, 2]
    for index, value in zip(sorted(bins), (3e-5, 1.5, 2e3), strict=True):
        assert borders[index] <= value < borders[index + 1]
    assert sum(found.share()) == pytest.approx(4 / 6)


def test_what_lies_beyond_counts_at_the_edge() -> None:
    found = Magnitudes.of(torch.tensor([1e-30, 1e30]))
    assert (found.counts[0], found.counts[-1]) == (1, 1)


def test_counts_add_up_and_nothing_is_a_sum_too() -> None:
    one, two = Magnitudes.of(torch.tensor([1.0, 0.0])), Magnitudes.of(torch.tensor([1.0]))
    assert total([one, two]) == Magnitudes.of(torch.tensor([1.0, 1.0, 0.0]))
    assert total([]).share() == [0.0] * BINS
