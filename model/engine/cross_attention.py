"""Attention of all beams of a request over its one context."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from model.engine.norm import Rows, scale_of
from model.engine.overlap import OVERLAPPED, in_turn


@dataclass(frozen=True, slots=True, eq=False)
class ContextRows:
    """Keys and values of a batch of requests as the kernel reads them.

    key [B, G, N, dh]. value is the same tensor where values are keys, else another of its shape; for E4M3 it is
    [B, G, dh, N'], keys innermost, N' >= N a multiple of 16 and the rest zero. lengths [B] int32: how many of the N
    may be read. key_scale, value_scale [B, G] float32 and out_scale [B] float32 in E4M3 only: outputs are convex
    combinations of values, so out_scale, the request's largest |value| / 448, is known before they are computed.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    out_scale: Tensor | None = None

    def attend(self, q: Rows, beams: int, heads: int) -> Rows:
        """See `cross_attention`; queries are in 16 bit."""
        return cross_attention(q.values, self, beams, heads)


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the kernel cuts its work: queries and keys of a tile, warps, pipeline depth.

    64 queries leave room for two programs on a multiprocessor: one computes powers while the other multiplies
    (H100, 512 beams, 3072 keys: 385 us in E4M3 and 404 in 16 bit, against 588 and 605 with 128 queries and 8 warps).
    """

    queries: int = 64
    keys: int = 128
    warps: int = 4
    stages: int = 3


def cross_attention(q: Tensor, context: ContextRows, beams: int, heads: int, tiles: Tiles | None = None) -> Rows:
    """q [B·R, d] 16 bit -> softmax(q·kᵀ/√dh)·v of every head [B·R, d], in E4M3 with a scale per row if the keys are."""
    rows, d = q.shape
    batch, groups, length, head_dim = context.key.shape
    if tiles is None:
        tiles = Tiles(queries=min(64, max(16, triton.next_power_of_2(beams))))
    eight = context.key_scale is not None
    split = eight or context.value.data_ptr() != context.key.data_ptr()
    key = TensorDescriptor.from_tensor(context.key.view(-1, head_dim), [tiles.keys, head_dim])
    value = None
    if eight:
        value = TensorDescriptor.from_tensor(context.value.view(-1, context.value.shape[-1]), [head_dim, tiles.keys])
    elif split:
        value = TensorDescriptor.from_tensor(context.value.view(-1, head_dim), [tiles.keys, head_dim])
    out = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else q.dtype, device=q.device)
    scale = torch.empty(rows, dtype=torch.float32, device=q.device) if eight else None
    _cross_attention[(triton.cdiv(beams, tiles.queries), heads, batch)](
        q,
        key,
        value,
        context.lengths,
        context.key_scale,
        context.value_scale,
        context.out_scale,
        out,
        scale,
        beams,
        length,
        d,
        head_dim**-0.5 * math.log2(math.e),
        HEADS=heads,
        GROUPS=groups,
        HEAD_DIM=head_dim,
        BQ=tiles.queries,
        BK=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **OVERLAPPED,
    )
    return Rows(out, scale)


@triton.jit
def _step(
    q, factor, key, value, key_row, value_row, n, length, top, total, acc,
    MASKED: tl.constexpr, EIGHT: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of keys: online softmax in powers of two."""
    k = key.load([key_row + n, 0])
    s = tl.dot(q, k.T)
    if MASKED:
        s = tl.where((n + tl.arange(0, BK) < length)[None, :], s, float("-inf"))
    higher = tl.maximum(top, tl.max(s, 1) * factor)
    alpha = tl.exp2(top - higher)
    # in E4M3 weights go up to 256, so that it keeps the small ones, too; one multiply-add an element
    floor = higher - 8.0 if EIGHT else higher
    p = tl.exp2(s * factor[:, None] - floor[:, None])
    total = total * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    if EIGHT:
        v = value.load([value_row, n]).T
        acc = tl.dot(p.to(tl.float8e4nv), v, acc)
    elif SPLIT:
        acc = tl.dot(p.to(k.dtype), value.load([key_row + n, 0]), acc)
    else:
        acc = tl.dot(p.to(k.dtype), k, acc)
    return higher, total, acc


@triton.jit
def _cross_attention(
    queries, key, value, lengths, key_scale, value_scale, out_scale, out, scale, beams, context, d, sharpness,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    in_turn()
    EIGHT: tl.constexpr = key_scale is not None
    SPLIT: tl.constexpr = value is not None
    head, request = tl.program_id(1), tl.program_id(2)
    group = request * GROUPS + head // (HEADS // GROUPS)
    beam = tl.program_id(0) * BQ + tl.arange(0, BQ)
    inside = beam < beams
    row = request.to(tl.int64) * beams + beam
    at = row[:, None] * d + head * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    q = tl.load(queries + at, inside[:, None], 0.0)
    factor = tl.full([BQ], sharpness, tl.float32)
    if EIGHT:
        wide = q.to(tl.float32)
        q_scale = scale_of(tl.max(tl.abs(wide), 1))
        q = (wide / q_scale[:, None]).to(tl.float8e4nv)
        factor = q_scale * (sharpness * tl.load(key_scale + group))
    top = tl.full([BQ], float("-inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    acc = tl.zeros([BQ, HEAD_DIM], tl.float32)
    length = tl.load(lengths + request)
    key_row, value_row = group * context, group * HEAD_DIM
    whole = (length // BK) * BK
    for n in tl.range(0, whole, BK):
        top, total, acc = _step(
            q, factor, key, value, key_row, value_row, n, length, top, total, acc, False, EIGHT, SPLIT, BK
        )
    if whole < length:
        top, total, acc = _step(
            q, factor, key, value, key_row, value_row, whole, length, top, total, acc, True, EIGHT, SPLIT, BK
        )
    result = acc / total[:, None]
    if EIGHT:
        one = tl.load(out_scale + request)
        result = result * (tl.load(value_scale + group) / one)
        result = tl.clamp(result, -448.0, 448.0)  # rounded weights may sum to a little more than one
        tl.store(out + at, result.to(tl.float8e4nv), inside[:, None])
        if head == 0:
            tl.store(scale + row, tl.zeros([BQ], tl.float32) + one, inside)
    else:
        tl.store(out + at, result.to(out.dtype.element_ty), inside[:, None])
