from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from quant.convert import quantise_layer
from quant.errors import QuantError
from quant.load import quantize_checkpoint
from quant.recipes import DEFAULT_RECIPE, RECIPES
from quant.report import LayerReport, QuantizationReport, layer_report

RECIPE = RECIPES[DEFAULT_RECIPE]


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_every_layer_of_a_checkpoint_is_reported_within_theory(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, histories: list[list[str]]
) -> None:
    report = quantize_checkpoint(request.getfixturevalue(which), tmp_path / "fp8", RECIPE, histories=histories[:8])
    assert len(report.layers) == (12 if which == "dense_dir" else 13)
    for layer in report.layers:
        assert 30.0 < layer.weight_sqnr_db < 34.0, layer
        assert layer.activation_sqnr_db is not None
        assert 28.0 < layer.activation_sqnr_db < 35.0, layer
        assert layer.output_sqnr_db is not None
        assert 20.0 < layer.output_sqnr_db < 33.0, layer
        assert layer.lost < 0.01
    assert report.histories == "8 given histories"
    assert "8 given histories" in report.table().title
    assert len(report.table().rows) == len(report.layers)


def test_without_histories_the_report_says_that_they_are_synthetic(dense_dir: Path, tmp_path: Path) -> None:
    report = quantize_checkpoint(dense_dir, tmp_path / "fp8", RECIPE)
    assert report.histories == "32 synthetic histories"
    assert all(layer.output_sqnr_db is not None for layer in report.layers)


def test_a_layer_never_reached_has_no_activation_figures() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(32, 32)
    layer = layer_report("x", plain, quantise_layer("x", plain, RECIPE), None)
    assert layer.activation_sqnr_db is None
    assert layer.output_sqnr_db is None


def test_infinite_ratios_are_null_in_json() -> None:
    layer = LayerReport("x", "Linear", (2, 2), math.inf, None, 3.0, 0.0)
    raw = QuantizationReport("e4m3", (layer,), 10, 5, "none", "d").to_dict()
    assert raw["layers"][0]["weight_sqnr_db"] is None
    json.dumps(raw, allow_nan=False)


def test_layers_that_are_no_twins_are_refused() -> None:
    with pytest.raises(QuantError, match="not the quantised twin"):
        layer_report("x", nn.Linear(2, 2), nn.Linear(2, 2), None)
