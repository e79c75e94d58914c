from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model.onerec import OneRecV2
from quant.convert import convert, hollow, narrow_attention, quantise_layer
from quant.cross_attention import Fp8CrossAttention
from quant.errors import NonFiniteError, RecipeError
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.primitives import sqnr_db
from quant.recipes import DEFAULT_RECIPE, FAULT_RECIPE, RECIPES, Fp8Recipe
from quant.self_attention import Fp8SelfAttention

RECIPE = RECIPES[DEFAULT_RECIPE]


def test_convert_replaces_the_selected_layers_and_nothing_else(experts_model: OneRecV2) -> None:
    before = {name: value.clone() for name, value in experts_model.state_dict().items()}
    steps: list[tuple[int, int, str]] = []
    names = convert(experts_model, RECIPE, lambda *step: steps.append(step))
    kinds = {type(experts_model.get_submodule(name)) for name in names}
    assert kinds == {Fp8Linear, Fp8Experts}
    assert steps == [(done, len(names), name) for done, name in enumerate(names, start=1)]
    after = experts_model.state_dict()
    kept = [name for name in before if not name.startswith(tuple(f"{layer}.weight" for layer in names))]
    kept = [name for name in kept if not name.endswith(("ffn.gate_up", "ffn.down"))]
    assert "decoder.blocks.1.ffn.router.weight" in kept
    assert "heads.0.weight" in kept
    for name in kept:
        assert torch.equal(after[name], before[name]), name


def test_attention_is_narrowed_once_and_only_where_the_recipe_says_so(dense_model: OneRecV2) -> None:
    convert(dense_model, RECIPE)
    assert not any(isinstance(module, Fp8CrossAttention | Fp8SelfAttention) for module in dense_model.modules())
    narrow_attention(dense_model, RECIPES["e4m3-engine"])
    first = [dense_model.get_submodule(f"decoder.blocks.{block}.cross") for block in (0, 1)]
    assert all(isinstance(module, Fp8CrossAttention) for module in first)
    narrow_attention(dense_model, RECIPES["e4m3-engine"])
    assert dense_model.get_submodule("decoder.blocks.1.cross") is first[1]
    assert isinstance(dense_model.get_submodule("decoder.blocks.1.self_attn"), Fp8SelfAttention)


def test_converting_twice_is_refused(dense_model: OneRecV2, experts_model: OneRecV2) -> None:
    for model in (dense_model, experts_model):
        convert(model, RECIPE)
        with pytest.raises(RecipeError, match="match no plain layer"):
            convert(model, RECIPE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_names_its_layer(dense_model: OneRecV2, bad: float) -> None:
    dense_model.decoder.blocks[1].ffn.down.weight[3, 5] = bad  # type: ignore[union-attr,index]
    with pytest.raises(NonFiniteError, match=r"decoder\.blocks\.1\.ffn\.down"):
        convert(dense_model, RECIPE)


def test_an_expert_that_is_not_finite_names_its_layer(experts_model: OneRecV2) -> None:
    experts_model.decoder.blocks[1].ffn.gate_up[2, 0, 0] = math.nan  # type: ignore[union-attr,index]
    with pytest.raises(NonFiniteError, match=r"decoder\.blocks\.1\.ffn\.gate_up"):
        convert(experts_model, RECIPE)


def test_a_zero_weight_stays_zero(dense_model: OneRecV2) -> None:
    layer = nn.Linear(16, 16, bias=False).requires_grad_(False)
    layer.weight.zero_()
    assert torch.equal(quantise_layer("x", layer, RECIPE)(torch.randn(2, 16)), torch.zeros(2, 16))


def test_the_fault_loses_most_of_a_weight_and_the_default_almost_nothing() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 128, bias=False).requires_grad_(False)
    healthy, faulty = (quantise_layer("x", layer, RECIPES[name]) for name in (DEFAULT_RECIPE, FAULT_RECIPE))
    assert isinstance(healthy, Fp8Linear)
    assert isinstance(faulty, Fp8Linear)
    assert sqnr_db(layer.weight, healthy.dequantised(torch.float32)) > 30.0
    assert sqnr_db(layer.weight, faulty.dequantised(torch.float32)) < 3.0
    assert torch.isfinite(faulty.dequantised(torch.float32)).all()


def test_hollow_refuses_names_that_cannot_be_quantised(dense_model: OneRecV2) -> None:
    with pytest.raises(RecipeError, match=r"no layer 'decoder\.blocks\.9\.cross\.wq'"):
        hollow(dense_model, RECIPE, ["decoder.blocks.9.cross.wq"])
    with pytest.raises(RecipeError, match="RMSNorm"):
        hollow(dense_model, RECIPE, ["head_norms.0"])


def test_a_layer_without_a_twin_is_refused() -> None:
    with pytest.raises(RecipeError, match="Embedding"):
        quantise_layer("context.recency", nn.Embedding(2, 2), Fp8Recipe("x"))
