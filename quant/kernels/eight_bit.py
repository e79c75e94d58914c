"""The engine's FP8 arithmetic: E4M3 rows and matrices, a scale per row of each, sums in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.arithmetic import Context, ExpertProduct, GatedProduct
from model.engine.cross_attention import ContextRows
from model.engine.cuda_module import is_hopper
from model.engine.grouped import ExpertMatrix, interleave
from model.engine.head import Head, HeadWeights, PlainHead
from model.engine.norm import Rows
from quant.kernels.attention import LONGEST_KEY, QUERY_ROOM, PackedContext
from quant.kernels.dense import PackedMatrix, fits_dense, pack_matrix
from quant.kernels.experts import fits_experts, pack_experts, pack_gated
from quant.kernels.order import HEAD_DIM, STORED_CODE, in_key_order, packed
from quant.kernels.screened_head import ScreenedHead
from quant.narrow import ALL_NARROW, Narrow
from quant.primitives import E4M3, E4M3_MAX, SCALE_FLOOR, dequantise, quantise, row_scale

_SUM_SLACK = 1.0625
"""Attention weights rounded to E4M3 may sum to this much where the exact ones sum to one."""

_REACH_SLACK = 1.01
"""Sums in 16 bit and their rounding may pass Cauchy and Schwarz's bound by this much."""

_LEAST_REACH, _LEAST_OF_ALL = 2.0**-16, 2.0**-20
"""Of the largest of an expert, and of all: so what an output less loud is divided by stays a number in 16 bit."""


@dataclass(frozen=True, slots=True, eq=False)
class EightBitMatrix:
    """weight [N, K] E4M3 and scale [1, N] float32, for PyTorch's own product."""

    weight: Tensor
    scale: Tensor

    def product(self, rows: Rows, onto: Tensor | None = None) -> Tensor:
        """See `PackedMatrix.product`."""
        out = torch._scaled_mm(
            rows.values,
            self.weight.t(),
            scale_a=rows.scales[:, None],
            scale_b=self.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return out if onto is None else onto.add_(out)


Matrix = EightBitMatrix | PackedMatrix


@dataclass(frozen=True, slots=True)
class EightBit:
    """Linear layers, experts and the cross attention in E4M3; norms, softmax, router, heads and sums wider.

    narrow: what else is in E4M3, where there is a kernel for it. The context always is.
    """

    name: str = "fp8"
    eight: bool = True
    narrow: Narrow = ALL_NARROW

    def takes_eight(self, matrix: Matrix, rows: int) -> bool:  # noqa: ARG002 - the protocol's
        """Always."""
        return True

    def matrix(self, weight: Tensor) -> Matrix:
        """One scale per output channel."""
        wide = weight.float()
        scale = _quiet_rows(wide, row_scale(wide))
        return _stored(quantise(wide, scale), scale[:, 0])

    def product(self, rows: Rows, matrix: Matrix) -> Tensor:
        """The row-wise scaled product."""
        return matrix.product(rows)

    def own_product(self, rows: Rows, matrix: Matrix) -> Rows:
        """In E4M3 where there is a kernel for it."""
        if self.narrow.own and isinstance(matrix, PackedMatrix):
            return matrix.narrow_product(rows)
        return Rows(matrix.product(rows))

    def queries(self, rows: Rows, matrix: Matrix, head_dim: int) -> Rows:
        """In E4M3 where the attention takes them so."""
        if head_dim == HEAD_DIM and isinstance(matrix, PackedMatrix):
            return matrix.narrow_product(rows, QUERY_ROOM)
        return Rows(matrix.product(rows))

    def add_product(self, h: Tensor, rows: Rows, matrix: Matrix) -> None:
        """Where there is a kernel for the matrix, `h` is read and written while products are under way."""
        matrix.product(rows, onto=h)

    def experts(self, up: Tensor, down: Tensor) -> tuple[ExpertProduct, ExpertProduct]:
        """One scale per output channel; what the gated product divides out, the columns of `down` put back."""
        codes, scale, reach, back_codes, back_scale = _balanced(up, down)
        if is_hopper(up.device) and fits_experts(up.shape[2], down.shape[2]):
            return pack_gated(codes, scale, reach), pack_experts(back_codes, back_scale, eight=self.narrow.results)
        return ExpertMatrix(codes, scale, reach, gated=True), ExpertMatrix(back_codes, back_scale)

    def gated(self, up: Tensor, down: Tensor) -> tuple[GatedProduct, Matrix] | None:
        """As of a single expert."""
        if not (is_hopper(up.device) and fits_experts(up.shape[1], down.shape[1])):
            return None
        codes, scale, reach, back_codes, back_scale = _balanced(up[None], down[None])
        return pack_gated(codes, scale, reach), _stored(back_codes[0], back_scale[0])

    def head(self, weights: HeadWeights) -> Head:
        """Screened in E4M3 where there is a kernel for it."""
        stored = self.matrix(weights.matrix)
        return ScreenedHead(weights, stored) if isinstance(stored, PackedMatrix) else PlainHead(weights)

    def context(self, key: Tensor, value: Tensor, lengths: Tensor) -> Context:
        """One scale per request and head; values with their keys innermost, as the tensor cores want them."""
        batch, groups, length, head_dim = key.shape
        key_scale, largest = _head_scale(key)
        keys = quantise(key, key_scale[..., None, None])
        value_scale, largest = (key_scale, largest) if value is key else _head_scale(value)
        codes = keys if value is key else quantise(value, value_scale[..., None, None])
        out_scale = (largest.amax(1) * (_SUM_SLACK / E4M3_MAX)).clamp_min_(SCALE_FLOOR)
        if is_hopper(key.device) and head_dim == HEAD_DIM:
            stored, mixed = packed(keys, codes)
            rows = stored if value is key else in_key_order(codes)
            return PackedContext(stored, mixed, lengths, key_scale, value_scale, out_scale, rows)
        room = -(-length // 16) * 16
        values = torch.zeros(batch, groups, head_dim, room, dtype=E4M3, device=key.device)
        values[..., :length] = codes.transpose(-1, -2)
        return ContextRows(keys, values, lengths, key_scale, value_scale, out_scale)


def _stored(codes: Tensor, scale: Tensor) -> Matrix:
    """Codes [N, K] with scale [N]."""
    if is_hopper(codes.device) and fits_dense(*codes.shape):
        return pack_matrix(codes, scale)
    return EightBitMatrix(codes, scale[None].contiguous())


def _quiet(scale: Tensor, usual: Tensor) -> Tensor:
    """`scale` times the power of two that brings the code of `usual`, what they stand for in root mean square, next to
    STORED_CODE. Codes that are stored stay what they are, but for the smallest, which are rounded to the step of
    subnormals. A row of K codes is at most 1.5 · STORED_CODE · √K long."""
    return scale * (usual / (scale * STORED_CODE)).clamp_min(1.0).log2().round().exp2()


def _quiet_rows(wide: Tensor, scale: Tensor) -> Tensor:
    """Of rows [..., K] of a matrix."""
    return _quiet(scale, wide.square().mean(-1, keepdim=True).sqrt())


def _head_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and max|x| [B, G] of each request and head of x [B, G, N, dh]."""
    largest = x.abs().amax(dim=(-2, -1)).float()
    lengths = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    usual = torch.linalg.vector_norm(lengths, dim=-1) * (x.shape[-2] * x.shape[-1]) ** -0.5
    scale = _quiet((largest * (1.0 / E4M3_MAX)).clamp_min_(SCALE_FLOOR), usual)
    return torch.maximum(scale, lengths.amax(-1) / LONGEST_KEY), largest


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Experts' up [E, 2I, d], gate rows first, and down [E, d, I] -> codes and scale [E, 2I] with gate and up in turns,
    reach [E, I] (see `ExpertMatrix`), and codes and scale [E, d] of `down` with its columns times reach.

    A reach is a power of two, so that codes of `down` stay what they are, but for the smallest, see `_quiet`: stored in
    E4M3 the others are not rounded twice.
    """
    wide = interleave(up).float()
    scale = _quiet_rows(wide, row_scale(wide))
    codes = quantise(wide, scale)
    lengths = dequantise(codes, scale).norm(dim=-1).view(up.shape[0], -1, 2)
    product = (lengths[..., 0] * lengths[..., 1] * _REACH_SLACK).clamp_min_(SCALE_FLOOR)
    least = torch.maximum(product.amax(-1, keepdim=True) * _LEAST_REACH, product.amax() * _LEAST_OF_ALL)
    reach = torch.maximum(product, least).log2().ceil().exp2()
    back, loudest = down.float(), reach.amax(-1)[:, None, None]
    scaled = back * reach[:, None, :]
    back_scale = _quiet_rows(scaled, row_scale(back) * loudest)
    back_codes = quantise(scaled, back_scale)
    return codes, scale[..., 0].contiguous(), reach.contiguous(), back_codes, back_scale[..., 0].contiguous()
