from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from model.recommender import Recommender
from quant.errors import QuantError
from quant.sampling import InputSample, Positions, synthetic_histories


def test_positions_are_the_newest_items_after_what_precedes_them() -> None:
    positions = Positions.of([[1, 2, 3, 4, 5, 6], [], [7]])
    assert positions.targets.tolist() == [3, 4, 5, 6, 7]
    assert positions.histories == ((1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5), ())
    items, valid = positions.windows(3)
    assert items[3].tolist() == [5, 4, 3]
    assert items[4].tolist() == [-1, -1, -1]
    assert torch.equal(valid, items >= 0)


def test_no_position_at_all_is_refused() -> None:
    with pytest.raises(QuantError, match="histories"):
        Positions.of([[], []])


def test_one_position_without_history_has_a_window() -> None:
    items, valid = Positions.of([[4]]).windows(5)
    assert items.tolist() == [[-1]]
    assert not valid.any()


def test_sample_is_bounded_and_spread_over_the_batch() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    with InputSample(model, ["0"], max_rows=10) as sample:
        model(torch.arange(100.0)[:, None])
        model(torch.full((50, 1), -1.0))
    kept = sample.rows["0"][:, 0].tolist()
    assert kept == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    with InputSample(model, ["0"], max_rows=10) as sample:
        model(torch.zeros(7, 1))
        model(torch.ones(90, 1))
        model(torch.ones(90, 1))
    assert sample.rows["0"].shape == (10, 1)


def test_hooks_are_removed_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(RuntimeError), InputSample(model, ["0"]):
        model(torch.zeros(1, 3))
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_nothing_reached_is_absent() -> None:
    with InputSample(nn.Sequential(nn.Linear(1, 1)), ["0"]) as sample:
        pass
    assert sample.rows == {}


def test_synthetic_histories_are_seeded_and_of_the_catalogue(dense_dir: Path) -> None:
    catalogue = Recommender.load(dense_dir).catalogue
    first = synthetic_histories(catalogue, seed=1)
    assert first == synthetic_histories(catalogue, seed=1)
    assert first != synthetic_histories(catalogue, seed=2)
    assert all(item in catalogue for history in first for item in history)
