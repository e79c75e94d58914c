"""Attention of all beams of a request over its one context in E4M3, by a kernel of Hopper's own instructions."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.cuda_module import Kernel, address, load_files, number, product_source, tensor_map
from model.engine.norm import Rows
from quant.kernels.one_query import one_query_attention
from quant.kernels.order import HEAD_DIM, KEYS
from quant.kernels.rows import round_rows_to_eight

QUERY_ROOM = 4.0
"""A query's codes stay below 448 / 4. A score is at most 112·√128 times the longest key's codes, and a half."""

LONGEST_KEY = 48.0
"""No key's codes are longer, but for their rounding."""

_QUERIES, _STAGES = 192, 6
_ONES = 8  # behind the values' features: what is mixed of them is the sum of weights
_SHARED_BYTES = _STAGES * KEYS * (2 * HEAD_DIM + _ONES) + 1024


@dataclass(frozen=True, slots=True, eq=False)
class PackedContext:
    """Keys and values in E4M3 in the order in which the tensor cores' registers want them.

    key [B, G, N', 128]: of each 32 keys, row 8j + 2q + e holds key 16·(j/2) + 4q + 2·(j%2) + e, so that a thread's
    scores of a tile are just the weights that the same thread must hand to the second product. value [B, G, 128, N']:
    keys innermost, and row 8j + 2q + e of each 128 holds feature 64·(j/8) + 16q + 2·(j%8) + e, so that a thread's
    results lie side by side. N' is a multiple of KEYS, the rest is zero. lengths [B] int32: keys that may be read, at
    least one. key_scale and value_scale [B, G], out_scale [B] float32: as in `ContextRows`. value_rows: the values once
    more, stored like the keys, or the keys where they are the values; so one query reads them.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor
    key_scale: Tensor
    value_scale: Tensor
    out_scale: Tensor
    value_rows: Tensor

    def attend(self, q: Rows, beams: int, heads: int) -> Rows:
        """See `packed_attention`, for queries in 16 bit, too; without beams `one_query_attention`."""
        if beams > 1:
            eight = round_rows_to_eight(q.values, QUERY_ROOM) if q.scale is None else q
            return packed_attention(eight, self, beams, heads)
        scales = self.key_scale, self.value_scale, self.out_scale
        return one_query_attention(q.sixteen, self.key, self.value_rows, self.lengths, scales, heads)


def packed_attention(q: Rows, context: PackedContext, beams: int, heads: int) -> Rows:
    """q [B·R, d] in E4M3, no code beyond 448 / QUERY_ROOM -> softmax(q·kᵀ/√128)·v of every head [B·R, d]."""
    rows, d = q.values.shape
    device = q.values.device
    batch, groups, room, width = context.key.shape
    out = torch.empty(rows, d, dtype=torch.float8_e4m3fn, device=device)
    scale = torch.empty(rows, dtype=torch.float32, device=device)
    blocks = -(-beams // _QUERIES)
    items = blocks * heads * batch
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    _kernel(device.index).launch(
        min(items, processors),
        512,
        [
            tensor_map(context.key.view(-1, width), KEYS),
            tensor_map(context.value.view(-1, room), HEAD_DIM),
            *map(address, (q.values, q.scales, context.lengths)),
            *map(address, (context.key_scale, context.value_scale, context.out_scale, out, scale)),
            *map(number, (beams, room, d, heads, groups, blocks, items)),
            ctypes.c_float(HEAD_DIM**-0.5 * math.log2(math.e)),
        ],
    )  # fmt: skip
    return Rows(out, scale)


@functools.cache
def _kernel(_device: int | None) -> Kernel:
    scores = product_source("product_scores", KEYS // 2, a_in_registers=True, halves=True)
    values = product_source("product_values", HEAD_DIM + _ONES, a_in_registers=True)
    sizes = {"STAGES": _STAGES}
    return load_files("quant.kernels", ["attention.cu"], "cross_attention", sizes, [scores, values], _SHARED_BYTES)
