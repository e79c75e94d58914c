"""Attention of one query of each request over its context in E4M3: the first level, before there are beams.

Nothing is multiplied often enough for tensor cores: what counts is that every key is read once. A program has one head
of one request; each of its places sums up the keys that come by, and only at the end do the places come together.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows
from model.engine.overlap import OVERLAPPED, in_turn
from quant.kernels.order import HEAD_DIM
from quant.primitives import E4M3

_PLACES, _STAGES = 128, 3  # the fastest of those tried, as the warps of a launch


def one_query_attention(
    q: Tensor,
    key: Tensor,
    value: Tensor | None,
    lengths: Tensor,
    scales: tuple[Tensor, Tensor, Tensor],
    heads: int,
) -> Rows:
    """q [B, d] bfloat16 -> softmax(q·kᵀ/√128)·v of every head [B, d], in E4M3 with a scale per row.

    key and value as `PackedContext` stores them; value None: the keys are the values, and are read once for both.
    scales: of the keys and of the values [B, G], of the result [B].
    """
    batch, d = q.shape
    groups, room = key.shape[1], key.shape[2]
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    out = torch.empty(batch, d, dtype=E4M3, device=q.device)
    scale = torch.empty(batch, dtype=torch.float32, device=q.device)
    _one_query[(heads, batch)](
        q, key, value, lengths, *scales, out, scale, room, d, HEAD_DIM**-0.5 * math.log2(math.e),
        HEADS=heads, GROUPS=groups, WIDTH=HEAD_DIM, BLOCK=_PLACES, STAGES=_STAGES,
        num_warps=4 if heads * batch > processors else 8, **OVERLAPPED,
    )  # fmt: skip
    return Rows(out, scale)


@triton.jit
def _one_query(
    q, key, value, lengths, key_scale, value_scale, out_scale, out, scale, room, d, sharpness,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    in_turn()
    head, request = tl.program_id(0), tl.program_id(1).to(tl.int64)
    group = request * GROUPS + head // (HEADS // GROUPS)
    length = tl.load(lengths + request)
    feature, place = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    x = tl.load(q + request * d + head * WIDTH + feature).to(tl.float32)
    x = x * (sharpness * tl.load(key_scale + group))
    # keys come as they are stored: which one a place has, and where a feature is, is order.py's
    within = place % 32
    number = place - within + 16 * (within // 16) + 4 * (within % 8 // 2) + 2 * (within // 8 % 2) + within % 2
    keys = key + group * room * WIDTH + place[:, None] * WIDTH + feature[None, :]
    row = 64 * (feature // 64) + 8 * (feature % 16 // 2) + 2 * (feature % 64 // 16) + feature % 2
    top = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
    for begin in tl.range(0, length, BLOCK, num_stages=STAGES):
        k = tl.load(keys + begin.to(tl.int64) * WIDTH).to(tl.float32)
        s = tl.sum(k * x[None, :], 1)
        real = begin + number < length
        now = tl.where(real, tl.maximum(top, s), top)
        weight = tl.where(real, tl.exp2(s - now), 0.0)
        shrink = tl.exp2(top - now)
        if value is None:
            v = k
        else:
            at = (group * WIDTH + row[None, :]) * room + begin + number[:, None]
            v = tl.load(value + at).to(tl.float32)
        total = total * shrink + weight
        mixed = mixed * shrink[:, None] + weight[:, None] * v
        top = now
    share = tl.exp2(top - tl.max(top, 0))
    y = tl.sum(mixed * share[:, None], 0) / tl.sum(total * share, 0)
    one = tl.load(out_scale + request)
    y = tl.clamp(y * (tl.load(value_scale + group) / one), -448.0, 448.0)
    tl.store(out + request * d + head * WIDTH + feature, y.to(out.dtype.element_ty))
    if head == 0:
        tl.store(scale + request, one)
