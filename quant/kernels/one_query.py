"""Attention of one query of each request over its context in E4M3: the first level, before there are beams.

Every key is scored once, so what counts is that it is read once. A block has a part of the keys of one head of one
request (`one_query.cu`); then the parts come together.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import ctypes
import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.cuda_module import Kernel, address, load_files, number
from model.engine.norm import Rows
from model.engine.overlap import OVERLAPPED, in_turn
from quant.kernels.order import HEAD_DIM, KEYS
from quant.primitives import E4M3

_THREADS = 128
_LEAST_PARTS = 3  # of a head's keys, or more until every multiprocessor has one
_MOST_KEYS = 4096  # of a part: a thread mixes one of 32, with weights of one at most, and codes of 448 stay in 16 bit
_KEPT = 2  # numbers that a part of a head leaves besides what it has mixed


def one_query_attention(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scales: tuple[Tensor, Tensor, Tensor],
    heads: int,
) -> Rows:
    """q [B, d] bfloat16 -> softmax(q·kᵀ/√128)·v of every head [B, d], in E4M3 with a scale per row.

    key and value as `PackedContext` stores keys; where they are one tensor it is read once for both. scales: of the
    keys and of the values [B, G], of the result [B].
    """
    batch, d = q.shape
    groups, room = key.shape[1], key.shape[2]
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    parts = max(_LEAST_PARTS, -(-processors // (heads * batch)), -(-room // _MOST_KEYS))
    parts = min(room // KEYS, parts)
    out = torch.empty(batch, d, dtype=E4M3, device=q.device)
    scale = torch.empty(batch, dtype=torch.float32, device=q.device)
    kept = torch.empty(batch, heads, parts, HEAD_DIM + _KEPT, dtype=torch.float32, device=q.device)
    key_scale, value_scale, out_scale = scales
    _kernel(value is key, q.device.index).launch(
        batch * heads * parts,
        _THREADS,
        [
            *map(address, (q, key, value, lengths, key_scale, kept)),
            *map(number, (room, heads, groups, parts)),
            ctypes.c_float(HEAD_DIM**-0.5 * math.log2(math.e)),
        ],
    )
    _join[(heads, batch)](
        kept, value_scale, out_scale, out, scale, parts, d,
        HEADS=heads, GROUPS=groups, WIDTH=HEAD_DIM, KEPT=_KEPT, PARTS=triton.next_power_of_2(parts), num_warps=1,
        **OVERLAPPED,
    )  # fmt: skip
    return Rows(out, scale)


@functools.cache
def _kernel(one: bool, _device: int | None) -> Kernel:
    return load_files("quant.kernels", ["one_query.cu"], "one_query", {"ONE": int(one)}, [], 0)


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
