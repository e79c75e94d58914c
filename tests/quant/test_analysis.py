from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from quant.analysis import Analysis, LayerAnalysis, markdown, write_analysis
from quant.convert import quantise_layer
from quant.load import quantize_checkpoint
from quant.recipes import DEFAULT_RECIPE, RECIPES
from quant.report import layer_report


def analysed(layer: nn.Linear, inputs: torch.Tensor | None, name: str = "x") -> LayerAnalysis:
    twin = quantise_layer(name, layer, RECIPES[DEFAULT_RECIPE])
    return LayerAnalysis.of(layer, inputs, layer_report(name, layer, twin, inputs))


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 64, bias=False).requires_grad_(False)


def test_an_ordinary_layer_does_not_stand_out(layer: nn.Linear) -> None:
    assert analysed(layer, torch.randn(50, 64)).outlier() is None


def test_a_lone_large_weight_is_named_and_may_stay(layer: nn.Linear) -> None:
    layer.weight[3, 5] = 10.0
    reason = analysed(layer, torch.randn(50, 64)).outlier()
    assert reason is not None
    assert "weights' AbsMax is 8" in reason
    assert "stays in E4M3" in reason


def test_a_layer_whose_output_drowns_is_advised_to_keep_sixteen_bits(layer: nn.Linear) -> None:
    inputs = torch.randn(50, 64)
    inputs[:25, 0] = 1e7  # leaves the others of these rows below the smallest code
    layer.weight[:, 0] *= 1e-9
    reason = analysed(layer, inputs).outlier()
    assert reason is not None
    assert "activations' AbsMax" in reason
    assert "keep it in 16 bits" in reason


def test_a_layer_that_nothing_reached_is_judged_by_its_weights(layer: nn.Linear) -> None:
    found = analysed(layer, None)
    assert found.outlier() is None
    assert found.activation is None
    assert Analysis("m", (found,)).table().rows[0][4:] == ("–", "–", "–", "–")


@pytest.mark.parametrize("which", ["dense_dir", "experts_dir"])
def test_a_checkpoints_analysis_is_written_while_it_is_quantised(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    layers: list[LayerAnalysis] = []
    quantize_checkpoint(
        request.getfixturevalue(which),
        tmp_path / "fp8",
        RECIPES[DEFAULT_RECIPE],
        observe=lambda layer, inputs, report: layers.append(LayerAnalysis.of(layer, inputs, report)),
    )
    analysis = Analysis("ours", tuple(layers), ("A remark.",))
    write_analysis(tmp_path / "analysis", [analysis])
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == [
        "analysis.json",
        "analysis.md",
        "analysis.png",
    ]
    raw = json.loads((tmp_path / "analysis" / "analysis.json").read_text())
    assert len(raw[0]["layers"]) == len(layers)
    assert raw[0]["extremes"]["weight_absmax"] == max(layer.weight.absmax for layer in layers)
    text = (tmp_path / "analysis" / "analysis.md").read_text()
    assert "A remark." in text
    assert "No layer stands out." in text
    assert text.count("decoder.blocks.") == len(layers)


def test_infinite_ratios_are_null_in_json_and_outliers_are_listed(layer: nn.Linear) -> None:
    layer.weight.zero_()
    layer.weight[0, 0] = 1.0
    analysis = Analysis("sparse", (analysed(layer, torch.randn(5, 64), "it"),))
    json.dumps(analysis.to_dict(), allow_nan=False)
    assert "- `it`: weights' AbsMax is inf times" in markdown([analysis])
