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
    least one. key_scale and value_scale [B, G], out_scale [B] float32: as in `ContextRows`. one: the values are the
    keys, in another order.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor
    key_scale: Tensor
    value_scale: Tensor
    out_scale: Tensor
    one: bool = False

    def attend(self, q: Tensor, beams: int, heads: int) -> Rows:
        """See `packed_attention`; without beams `one_query_attention`."""
        if beams > 1:
            return packed_attention(q, self, beams, heads)
        scales = self.key_scale, self.value_scale, self.out_scale
        return one_query_attention(q, self.key, None if self.one else self.value, self.lengths, scales, heads)


def packed_attention(q: Tensor, context: PackedContext, beams: int, heads: int) -> Rows:
    """q [B·R, d] bfloat16 -> softmax(q·kᵀ/√128)·v of every head [B·R, d], in E4M3 with a scale per row."""
    rows, d = q.shape
    batch, groups, room, width = context.key.shape
    out = torch.empty(rows, d, dtype=torch.float8_e4m3fn, device=q.device)
    scale = torch.empty(rows, dtype=torch.float32, device=q.device)
    blocks = -(-beams // _QUERIES)
    items = blocks * heads * batch
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    _kernel(q.device.index).launch(
        min(items, processors),
        512,
        [
            tensor_map(context.key.view(-1, width), KEYS),
            tensor_map(context.value.view(-1, room), HEAD_DIM),
            address(q), address(context.lengths), address(context.key_scale), address(context.value_scale),
            address(context.out_scale), address(out), address(scale),
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
