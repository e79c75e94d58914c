"""Attention of one query of each request over its context in E4M3: the first level, before there are beams.

Nothing is multiplied often enough for tensor cores: what counts is that every key is read once. A program has a part of
the keys of one head of one request; each of its places sums up the keys that come by. Only at the end do the places
come together, and then the parts.
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

_PLACES, _STAGES, _WARPS = 128, 3, 4  # the fastest of those tried
_LEAST_PARTS = 2  # of a head's keys, or more until every multiprocessor has one
_KEPT = 2  # numbers that a part of a head leaves besides what it has mixed


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
    parts = min(room // _PLACES, max(_LEAST_PARTS, -(-processors // (heads * batch))))
    out = torch.empty(batch, d, dtype=E4M3, device=q.device)
    scale = torch.empty(batch, dtype=torch.float32, device=q.device)
    kept = torch.empty(batch, heads, parts, HEAD_DIM + _KEPT, dtype=torch.float32, device=q.device)
    key_scale, value_scale, out_scale = scales
    _mix[(heads, batch, parts)](
        q, key, value, lengths, key_scale, kept, room, d, HEAD_DIM**-0.5 * math.log2(math.e),
        HEADS=heads, GROUPS=groups, WIDTH=HEAD_DIM, KEPT=_KEPT, BLOCK=_PLACES, STAGES=_STAGES, num_warps=_WARPS,
        **OVERLAPPED,
    )  # fmt: skip
    _join[(heads, batch)](
        kept, value_scale, out_scale, out, scale, parts, d,
        HEADS=heads, GROUPS=groups, WIDTH=HEAD_DIM, KEPT=_KEPT, PARTS=triton.next_power_of_2(parts), num_warps=1,
        **OVERLAPPED,
    )  # fmt: skip
    return Rows(out, scale)


@triton.jit
def _mix(
    q, key, value, lengths, key_scale, kept, room, d, sharpness,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, KEPT: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the keys, relative to the part's largest score, which is kept with them."""
    in_turn()
    head, request, part = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    group = request * GROUPS + head // (HEADS // GROUPS)
    length = tl.load(lengths + request)
    share = tl.cdiv(tl.cdiv(length, BLOCK), tl.num_programs(2)) * BLOCK
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
    for begin in tl.range(part * share, tl.minimum(length, (part + 1) * share), BLOCK, num_stages=STAGES):
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
    most = tl.max(top, 0)
    weight = tl.exp2(top - most)
    to = kept + ((request * HEADS + head) * tl.num_programs(2) + part) * (WIDTH + KEPT)
    tl.store(to + feature, tl.sum(mixed * weight[:, None], 0))
    tl.store(to + WIDTH, tl.sum(total * weight, 0))
    tl.store(to + WIDTH + 1, most)


@triton.jit
def _join(
    kept, value_scale, out_scale, out, scale, parts, d,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, KEPT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The parts of a head, brought to the largest score of all."""
    in_turn()
    head, request = tl.program_id(0), tl.program_id(1).to(tl.int64)
    group = request * GROUPS + head // (HEADS // GROUPS)
    feature, part = tl.arange(0, WIDTH), tl.arange(0, PARTS)
    there = part < parts
    of = kept + ((request * HEADS + head) * parts + part) * (WIDTH + KEPT)
    top = tl.load(of + WIDTH + 1, there, -1e30)
    weight = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(tl.load(of + WIDTH, there, 0.0) * weight, 0)
    mixed = tl.load(of[:, None] + feature[None, :], there[:, None], 0.0)
    y = tl.sum(mixed * weight[:, None], 0) / total
    one = tl.load(out_scale + request)
    y = tl.clamp(y * (tl.load(value_scale + group) / one), -448.0, 448.0)
    tl.store(out + request * d + head * WIDTH + feature, y.to(out.dtype.element_ty))
    if head == 0:
        tl.store(scale + request, one)
