"""Attention of each new token over the at most three tokens of its beam, in one pass over the rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows, from_the_last, scale_of
from model.engine.overlap import OVERLAPPED, in_turn

_NUMBERS = 2048  # of a row that a warp holds: with more warps a row's would wait for each other


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
    d, block = width // 3, triton.next_power_of_2(heads)
    values = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else qkv.dtype, device=qkv.device)
    scale = torch.empty(rows, dtype=torch.float32, device=qkv.device) if eight else None
    _self_attention[(rows,)](
        qkv,
        past[0] if past else None,
        past[1] if len(past) > 1 else None,
        parents[0] if len(past) > 1 else None,
        values,
        scale,
        d,
        beams,
        (d // heads) ** -0.5,
        HEADS=heads,
        HEADS_BLOCK=block,
        HEAD_DIM=d // heads,
        num_warps=max(1, block * (d // heads) // _NUMBERS),
        **OVERLAPPED,
    )
    return Rows(values, scale)


@triton.jit
def _self_attention(
    qkv,
    first,
    second,
    parent,
    values,
    scale,
    d,
    beams,
    sharpness,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    in_turn()
    row = from_the_last().to(tl.int64)
    request = row // beams
    head = tl.arange(0, HEADS_BLOCK)
    at = head[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    inside = (head < HEADS)[:, None]
    own = qkv + row * 3 * d + at
    v = tl.load(own + 2 * d, inside, 0.0).to(tl.float32)
    out = v
    if first is not None:
        q = tl.load(own, inside, 0.0).to(tl.float32) * sharpness
        s = tl.sum(q * tl.load(own + d, inside, 0.0).to(tl.float32), 1)
        base = first + request * 3 * d + at
        s0 = tl.sum(q * tl.load(base + d, inside, 0.0).to(tl.float32), 1)
        v0 = tl.load(base + 2 * d, inside, 0.0).to(tl.float32)
        top = tl.maximum(s, s0)
        if second is None:
            p, p0 = tl.exp(s - top), tl.exp(s0 - top)
            out = (p[:, None] * v + p0[:, None] * v0) / (p + p0)[:, None]
        else:
            before = request * beams + tl.load(parent + row)
            base1 = second + before * 3 * d + at
            s1 = tl.sum(q * tl.load(base1 + d, inside, 0.0).to(tl.float32), 1)
            v1 = tl.load(base1 + 2 * d, inside, 0.0).to(tl.float32)
            top = tl.maximum(top, s1)
            p, p0, p1 = tl.exp(s - top), tl.exp(s0 - top), tl.exp(s1 - top)
            out = (p[:, None] * v + p0[:, None] * v0 + p1[:, None] * v1) / (p + p0 + p1)[:, None]
    target = values + row * d + at
    if scale is None:
        tl.store(target, out.to(values.dtype.element_ty), inside)
    else:
        out = out.to(qkv.dtype.element_ty).to(tl.float32)
        s8 = scale_of(tl.max(tl.max(tl.abs(out), 1), 0))
        tl.store(target, (out / s8).to(tl.float8e4nv), inside)
        tl.store(scale + row, s8)
