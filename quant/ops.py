"""The quantised products: one public function each, with a torch reference and, where there is one, a fast path."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from quant.primitives import dequantise, quantise, round_rows, round_runs, row_scale

FAST_CAPABILITY = (8, 9)
"""First CUDA compute capability whose tensor cores multiply FP8."""

_ALIGNMENT = 16  # elements: what torch._scaled_mm asks of both widths


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    dequantised: Tensor | None = None,
) -> Tensor:
    """x · (weight · weight_scale)ᵀ + bias with x rounded through E4M3, one dynamic scale per row.

    x [..., K] in a float dtype; weight [N, K] E4M3; weight_scale [N, 1] float32; bias [N] -> [..., N] in x's dtype.
    Sums are float32 or better. Where the device multiplies FP8 and 16 divides N and K this is one row-wise
    `torch._scaled_mm`; elsewhere it is the same numbers through an ordinary product with `dequantised`, the weights
    times their scale in x's dtype, which a caller that has them at hand passes in. On a CPU the latter takes about
    half the time of `_scaled_mm` (tests/bench/quant_cpu.py).
    """
    if runs_on_tensor_cores(x, weight):
        return _scaled_product(x, weight, weight_scale, bias)
    matrix = dequantise(weight, weight_scale, x.dtype) if dequantised is None else dequantised
    if x.dtype == torch.float32:
        values, scale = round_rows(x)
        return functional.linear(values.mul_(scale), matrix, bias)
    # codes are exact in 16 bits, codes times scale are not: scale the product instead
    values, scale = round_rows(x.float())
    out = functional.linear(values.to(x.dtype), matrix).float().mul_(scale)
    return (out if bias is None else out.add_(bias)).to(x.dtype)


def fp8_block_linear(x: Tensor, dequantised: Tensor, block: int | None) -> Tensor:
    """x · dequantisedᵀ with x rounded through E4M3, one dynamic scale per 1 × block run of a row, or None: per row.

    x [T, K]; dequantised [N, K]: weights already rounded through E4M3, by the same rule -> [T, N].
    """
    return functional.linear(round_runs(x.float(), block or x.shape[-1]).to(x.dtype), dequantised)


def runs_on_tensor_cores(x: Tensor, weight: Tensor) -> bool:
    """Whether `fp8_linear` takes the row-wise FP8 product for these operands."""
    if not x.is_cuda or weight.shape[0] % _ALIGNMENT or weight.shape[1] % _ALIGNMENT:
        return False
    return _capability(x.get_device()) >= FAST_CAPABILITY


def _scaled_product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    wide = rows.float()
    scale = row_scale(wide)
    out = torch._scaled_mm(
        quantise(wide, scale),
        weight.t(),
        scale_a=scale,
        scale_b=weight_scale.t(),
        out_dtype=torch.bfloat16,  # the only output of the row-wise kernels
        use_fast_accum=False,
    ).to(x.dtype)
    return (out if bias is None else out + bias.to(x.dtype)).view(*x.shape[:-1], -1)


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
