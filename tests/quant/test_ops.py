from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.ops import _scaled_product, fp8_block_linear, fp8_linear, runs_on_tensor_cores
from quant.primitives import dequantise, quantise, round_runs, row_scale, sqnr_db


def operands(rows: int, wide: int, out: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, wide, generator=generator)
    dense = torch.randn(out, wide, generator=generator) * wide**-0.5
    scale = row_scale(dense)
    return x, dense, quantise(dense, scale), scale


def exact(x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The definition in double precision: codes of x times codes of the weight, times both scales."""
    scale = row_scale(x.float())
    codes = quantise(x.float(), scale).double()
    return codes @ weight.double().t() * scale.double() * weight_scale.double().t()


@pytest.mark.parametrize("shape", [(8, 64, 64), (33, 48, 80), (1, 7, 3)])
def test_reference_equals_the_definition_in_double_precision(shape: tuple[int, int, int]) -> None:
    x, _, weight, scale = operands(*shape)
    torch.testing.assert_close(fp8_linear(x, weight, scale).double(), exact(x, weight, scale), rtol=2e-5, atol=2e-6)


def test_product_of_gaussians_has_the_sqnr_of_two_roundings() -> None:
    """Two independent roundings of about 31.5 dB each add up to about 28.5 dB."""
    x, dense, weight, scale = operands(256, 512, 256)
    assert 28.0 < sqnr_db(x @ dense.t(), fp8_linear(x, weight, scale)) < 30.0


def test_bias_and_leading_dimensions_are_kept() -> None:
    x, _, weight, scale = operands(24, 32, 16)
    bias = torch.linspace(-1, 1, 16)
    flat = fp8_linear(x, weight, scale)
    torch.testing.assert_close(fp8_linear(x.view(2, 3, 4, 32), weight, scale, bias), (flat + bias).view(2, 3, 4, 16))
    assert torch.equal(fp8_linear(torch.zeros(2, 32), weight, scale, bias), bias.expand(2, 16))


def test_cached_weights_change_nothing_and_the_input_is_not_overwritten() -> None:
    x, _, weight, scale = operands(5, 32, 16)
    before = x.clone()
    cached = dequantise(weight, scale)
    assert torch.equal(fp8_linear(x, weight, scale, dequantised=cached), fp8_linear(x, weight, scale))
    assert torch.equal(x, before)


def test_each_token_has_its_own_scale() -> None:
    x, _, weight, scale = operands(4, 64, 32)
    alone = fp8_linear(x[:1], weight, scale)
    x[3] *= 1e6
    torch.testing.assert_close(fp8_linear(x, weight, scale)[:1], alone)


def test_sixteen_bit_inputs_give_sixteen_bit_outputs_near_the_definition() -> None:
    x, _, weight, scale = operands(40, 128, 64)
    half = x.bfloat16()
    out = fp8_linear(half, weight, scale, torch.ones(64))
    assert out.dtype == torch.bfloat16
    assert sqnr_db(exact(half, weight, scale) + 1.0, out) > 45.0


def test_row_wise_scaled_product_agrees_with_the_reference() -> None:
    """The call that a GPU gets; torch runs it on a CPU too, slowly."""
    x, _, weight, scale = operands(48, 64, 96)
    fast = _scaled_product(x, weight, scale, torch.ones(96))
    assert fast.dtype == x.dtype
    assert sqnr_db(fp8_linear(x, weight, scale, torch.ones(96)), fast) > 45.0  # bfloat16 output: about 50 dB


def test_block_linear_equals_a_product_of_rounded_runs() -> None:
    x, dense, _, _ = operands(12, 300, 40)
    expected = round_runs(x, 128) @ dense.t()
    torch.testing.assert_close(fp8_block_linear(x, dense, 128), expected)
    assert not torch.allclose(fp8_block_linear(x, dense, 128), x @ dense.t(), rtol=1e-4)


def test_a_cpu_never_takes_the_tensor_core_path() -> None:
    x, _, weight, _ = operands(16, 64, 64)
    assert not runs_on_tensor_cores(x, weight)
