"""Attention of each new token over the at most three tokens of its beam, in one pass over the rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows, from_the_last, scale_of, whole_row
from model.engine.overlap import OVERLAPPED, in_turn


def self_attention(
    qkv: Rows,
    past: tuple[Rows, ...],
    parents: tuple[Tensor, ...],
    beams: int,
    heads: int,
    *,
    eight: bool = False,
) -> Rows:
    """qkv [B·R, 3d] of the new tokens, in either format -> mixed rows [B·R, d].

    past: the qkv rows of the earlier levels as they were computed, never copied: [B, 3d] of the first token, then
    [B·R, 3d]. parents: for each of them but the first the row in [0, R) of its request that each new row continues,
    int64 [B·R]. beams: R. At most three tokens, the model's own length.
    """
    rows, width = qkv.values.shape
    d, device = width // 3, qkv.values.device
    sixteen = torch.bfloat16 if qkv.scale is not None else qkv.values.dtype
    values = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else sixteen, device=device)
    scale = torch.empty(rows, dtype=torch.float32, device=device) if eight else None
    first, second = (*past, None, None)[:2]
    whole = whole_row(d)
    _self_attention[(rows,)](
        qkv.values,
        qkv.scale,
        first.values if first else None,
        first.scale if first else None,
        second.values if second else None,
        second.scale if second else None,
        parents[0] if second else None,
        values,
        scale,
        beams,
        (d // heads) ** -0.5 * math.log2(math.e),
        HEADS=heads,
        HEAD_DIM=d // heads,
        TOGETHER=max(1, whole["CHUNK"] * heads // d),
        num_warps=whole["num_warps"],
        **OVERLAPPED,
    )
    return Rows(values, scale)


@triton.jit
def _self_attention(
    qkv, qkv_scale, first, first_scale, second, second_scale, parent, values, scale, beams, sharpness,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """A row of all heads, TOGETHER at a time. What divides a number is its head's or its row's and divided by before: a
    division takes as many instructions as all the rest."""
    in_turn()
    D: tl.constexpr = HEADS * HEAD_DIM
    row = from_the_last().to(tl.int64)
    request = row // beams
    own, one = qkv + row * 3 * D, _scale_at(qkv_scale, row)
    base, zeroth, base1, other = first, one, second, one
    if first is not None:
        base += request * 3 * D
        zeroth = _scale_at(first_scale, request)
    if second is not None:
        before = request * beams + tl.load(parent + row)
        base1 += before * 3 * D
        other = _scale_at(second_scale, before)
    sharpness *= one
    out: tl.tuple = ()
    largest = tl.zeros([TOGETHER], tl.float32)
    for start in tl.static_range(0, HEADS, TOGETHER):
        head = start + tl.arange(0, TOGETHER)
        at = head[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        inside = (head < HEADS)[:, None]
        mixed = _wide(own + 2 * D + at, inside)
        if first is None:
            mixed *= one
        else:
            q = _wide(own + at, inside)
            s = tl.sum(q * _wide(own + D + at, inside), 1) * (sharpness * one)
            s0 = tl.sum(q * _wide(base + D + at, inside), 1) * (sharpness * zeroth)
            top = tl.maximum(s, s0)
            if second is not None:
                s1 = tl.sum(q * _wide(base1 + D + at, inside), 1) * (sharpness * other)
                top = tl.maximum(top, s1)
            p, p0 = tl.exp2(s - top), tl.exp2(s0 - top)
            total = p + p0
            if second is not None:
                p1 = tl.exp2(s1 - top)
                total += p1
            mixed *= (p * one / total)[:, None]
            mixed += (p0 * zeroth / total)[:, None] * _wide(base + 2 * D + at, inside)
            if second is not None:
                mixed += (p1 * other / total)[:, None] * _wide(base1 + 2 * D + at, inside)
        out += (mixed,)
        largest = tl.maximum(largest, tl.max(tl.abs(mixed), 1))
    factor = 1.0
    if scale is not None:
        s8 = scale_of(tl.max(largest, 0))
        tl.store(scale + row, s8)
        factor = 1.0 / s8
    for c in tl.static_range(len(out)):
        head = c * TOGETHER + tl.arange(0, TOGETHER)
        at = head[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        tl.store(values + row * D + at, (out[c] * factor).to(values.dtype.element_ty), (head < HEADS)[:, None])


@triton.jit
def _scale_at(scales, row):
    one = 1.0
    if scales is not None:
        one = tl.load(scales + row)
    return one


@triton.jit
def _wide(numbers, inside):
    return tl.load(numbers, inside, 0.0).to(tl.float32)
