from __future__ import annotations

import pytest
import torch

from model.onerec import OneRecV2
from quant.convert import convert
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.primitives import quantise, row_scale
from quant.recipes import DEFAULT_RECIPE, RECIPES
from quant.stored_weights import linear_shapes, stored_weights

RECIPE = RECIPES[DEFAULT_RECIPE]


def test_a_plain_model_reads_as_it_is(experts_model: OneRecV2) -> None:
    read = stored_weights(experts_model)
    for name, value in experts_model.state_dict().items():
        assert torch.equal(read(name), value), name
    assert linear_shapes(experts_model) == ()


def test_rounding_what_is_read_gives_the_stored_codes_again(dense_model: OneRecV2) -> None:
    """So the engine, which is handed float32 weights, multiplies the checkpoint's own codes."""
    names = convert(dense_model, RECIPE)
    read = stored_weights(dense_model)
    for name in names:
        layer = dense_model.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        weight = read(f"{name}.weight")
        assert weight.dtype == torch.float32
        scale = row_scale(weight)
        assert torch.equal(quantise(weight, scale).view(torch.uint8), layer.weight.view(torch.uint8)), name
        torch.testing.assert_close(scale, layer.weight_scale, rtol=1e-6, atol=0)
    assert linear_shapes(dense_model) == ((64, 64), (64, 192), (64, 256), (128, 64))


def test_experts_are_decoded_block_by_block(experts_model: OneRecV2) -> None:
    plain = {name: value.clone() for name, value in experts_model.state_dict().items()}
    convert(experts_model, RECIPE)
    layer = experts_model.get_submodule("decoder.blocks.1.ffn")
    assert isinstance(layer, Fp8Experts)
    read = stored_weights(experts_model)
    for part, decoded in zip(("gate_up", "down"), layer.dequantised(torch.float32), strict=True):
        got = read(f"decoder.blocks.1.ffn.{part}")
        assert torch.equal(got, decoded)
        torch.testing.assert_close(got, plain[f"decoder.blocks.1.ffn.{part}"], rtol=0.07, atol=0.01)
    assert read("decoder.blocks.1.ffn.router.weight").dtype == plain["decoder.blocks.1.ffn.router.weight"].dtype


def test_a_weight_that_the_model_lacks_is_an_error(dense_model: OneRecV2) -> None:
    with pytest.raises(AttributeError):
        stored_weights(dense_model)("decoder.blocks.0.ffn.router.weight")
