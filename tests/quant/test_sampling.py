from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from model.recommender import Recommender
from quant.errors import NonFiniteError
from quant.sampling import InputSample, sample_inputs, synthetic_histories

NAMES = ["decoder.blocks.0.cross.wq", "decoder.blocks.1.ffn.down", "heads.2"]


def test_inputs_of_named_layers_are_kept_and_hooks_removed(dense_dir: Path, histories: list[list[str]]) -> None:
    recommender = Recommender.load(dense_dir, dtype=torch.float32)
    rows = sample_inputs(recommender, NAMES, histories[:4], batch_size=2)
    assert set(rows) == set(NAMES)
    assert rows["decoder.blocks.0.cross.wq"].shape[1] == 64
    assert rows["decoder.blocks.1.ffn.down"].shape[1] == 128
    assert not any(module._forward_pre_hooks for module in recommender.model.modules())


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


def test_nan_inside_the_model_names_the_layer(dense_dir: Path, histories: list[list[str]]) -> None:
    recommender = Recommender.load(dense_dir, dtype=torch.float32)
    recommender.model.get_parameter("decoder.blocks.1.norm_ffn.weight").data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"decoder\.blocks\.1\.ffn\.gate_up \(input\)"):
        sample_inputs(recommender, ["decoder.blocks.0.ffn.gate_up", "decoder.blocks.1.ffn.gate_up"], histories[:2])


def test_synthetic_histories_are_seeded_and_of_the_catalogue(dense_dir: Path) -> None:
    catalogue = Recommender.load(dense_dir).catalogue
    first = synthetic_histories(catalogue, seed=1)
    assert first == synthetic_histories(catalogue, seed=1)
    assert first != synthetic_histories(catalogue, seed=2)
    assert all(item in catalogue for history in first for item in history)
