"""Attention of each new token over the at most three tokens of its beam, in one pass over the rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows, from_the_last, scale_of, whole_row
from model.engine.overlap import OVERLAPPED, in_turn


def self_attention(
    qkv: Tensor,
    past: tuple[Tensor, ...],
    parents: tuple[Tensor, ...],
    beams: int,
    heads: int,
    *,
    eight: bool = False,
) -> Rows:
    """qkv [B·R, 3d] of the new tokens -> mixed rows [B·R, d].

    past: the qkv rows of the earlier levels as they were computed, never copied: [B, 3d] of the first token, then
    [B·R, 3d]. parents: for each of them but the first the row in [0, R) of its request that each new row continues,
    int64 [B·R]. beams: R. At most three tokens, the model's own length.
    """
    rows, width = qkv.shape
    d = width // 3
    values = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else qkv.dtype, device=qkv.device)
    scale = torch.empty(rows, dtype=torch.float32, device=qkv.device) if eight else None
    whole = whole_row(d)
    _self_attention[(rows,)](
        qkv,
        past[0] if past else None,
        past[1] if len(past) > 1 else None,
        parents[0] if len(past) > 1 else None,
        values,
        scale,
        beams,
        (d // heads) ** -0.5,
        HEADS=heads,
        HEAD_DIM=d // heads,
        TOGETHER=max(1, whole["CHUNK"] * heads // d),
        num_warps=whole["num_warps"],
        **OVERLAPPED,
    )
    return Rows(values, scale)


@triton.jit
def _self_attention(
    qkv, first, second, parent, values, scale, beams, sharpness,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """A row of all heads, TOGETHER at a time. What divides a number is its head's or its row's and divided by before: a
    division takes as many instructions as all the rest."""
    in_turn()
    D: tl.constexpr = HEADS * HEAD_DIM
    row = from_the_last().to(tl.int64)
    request = row // beams
    own, base, base1 = qkv + row * 3 * D, first, second
    if first is not None:
        base += request * 3 * D
    if second is not None:
        base1 += (request * beams + tl.load(parent + row)) * 3 * D
    out: tl.tuple = ()
    largest = tl.zeros([TOGETHER], tl.float32)
    for start in tl.static_range(0, HEADS, TOGETHER):
        head = start + tl.arange(0, TOGETHER)
        at = head[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        inside = (head < HEADS)[:, None]
        mixed = _wide(own + 2 * D + at, inside)
        if first is not None:
            q = _wide(own + at, inside) * sharpness
            s, s0 = tl.sum(q * _wide(own + D + at, inside), 1), tl.sum(q * _wide(base + D + at, inside), 1)
            top = tl.maximum(s, s0)
            if second is not None:
                s1 = tl.sum(q * _wide(base1 + D + at, inside), 1)
                top = tl.maximum(top, s1)
            p, p0 = tl.exp(s - top), tl.exp(s0 - top)
            total = p + p0
            if second is not None:
                p1 = tl.exp(s1 - top)
                total += p1
            mixed = (p / total)[:, None] * mixed + (p0 / total)[:, None] * _wide(base + 2 * D + at, inside)
            if second is not None:
                mixed += (p1 / total)[:, None] * _wide(base1 + 2 * D + at, inside)
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
def _wide(numbers, inside):
    return tl.load(numbers, inside, 0.0).to(tl.float32)
