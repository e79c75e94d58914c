from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from model.onerec import OneRecV2
from quant import distribution
from quant.convert import convert
from quant.distribution import Spread, spread_table, spreads, weights_of
from quant.errors import QuantError
from quant.recipes import DEFAULT_RECIPE, RECIPES


def test_spread_of_a_known_sample() -> None:
    values = torch.arange(1, 101, dtype=torch.float32)
    values[::2] *= -1
    spread = Spread.of(values.view(4, 25))
    assert spread.absmax == 100.0
    assert spread.absp99 == 99.0
    assert spread.variance == pytest.approx(float(values.double().var(correction=0)))
    assert Spread.of(torch.tensor([3.0])) == Spread(0.0, 3.0, 3.0)


def test_an_outlier_shows_in_absmax_but_not_in_absp99() -> None:
    values = torch.ones(1000)
    values[17] = 1e4
    spread = Spread.of(values)
    assert (spread.absmax, spread.absp99) == (1e4, 1.0)
    assert spread.variance > 1e4


def test_a_sample_longer_than_a_piece_in_parts_is_measured_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "PIECE", 1000)
    values = torch.randn(12_345, generator=torch.Generator().manual_seed(0)) * 1e-3 + 2e-3
    found = Spread.of(values[:5000].view(50, 100), values[5000:].bfloat16().float())
    joined = torch.cat([values[:5000], values[5000:].bfloat16().float()])
    assert found.variance == pytest.approx(float(joined.double().var(correction=0)), rel=1e-12)
    assert found.absmax == float(joined.abs().max())
    assert found.absp99 == float(joined.abs().kthvalue(12_222).values)
    assert found.outlier_ratio == found.absmax / found.absp99


def test_mostly_zeros_have_an_endless_outlier_ratio() -> None:
    assert Spread.of(torch.eye(200)).outlier_ratio == float("inf")


def test_no_values_are_refused() -> None:
    with pytest.raises(QuantError, match="no values"):
        Spread.of(torch.empty(0))


def test_a_layer_without_seen_inputs_has_no_activation(experts_model: OneRecV2) -> None:
    names = ["decoder.blocks.0.cross.wq", "decoder.blocks.1.ffn"]
    layers = spreads(experts_model, names, {names[0]: torch.full((2, 64), 0.5)})
    assert layers[0].activation == Spread(0.0, 0.5, 0.5)
    assert layers[1].activation is None
    assert layers[1].weight.absmax > 0
    shown = spread_table(layers)
    assert shown.rows[1][4:] == ("–", "–", "–")
    json.dumps([layer.to_dict() for layer in layers], allow_nan=False)


def test_only_plain_layers_have_plain_weights(experts_model: OneRecV2) -> None:
    moe = experts_model.get_submodule("decoder.blocks.1.ffn")
    assert sum(part.numel() for part in weights_of(moe)) == 4 * 3 * 48 * 64
    convert(experts_model, RECIPES[DEFAULT_RECIPE])
    for layer in (experts_model.get_submodule("decoder.blocks.1.ffn"), nn.RMSNorm(3)):
        with pytest.raises(QuantError, match="no plain weights"):
            weights_of(layer)
