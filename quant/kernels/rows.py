"""Rounding of 16-bit rows to E4M3 where no other kernel does it on the way."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows, in_eight
from model.engine.overlap import OVERLAPPED, in_turn
from quant.primitives import E4M3


def round_rows_to_eight(x: Tensor, room: float = 1.0) -> Rows:
    """x [T, K] 16 bit, contiguous -> E4M3 with a scale per row, as `quant.primitives.row_scale` and `quantise`; no code
    is beyond 448 / room."""
    rows, width = x.shape
    values = torch.empty(rows, width, dtype=E4M3, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    _round[(rows,)](x, values, scale, width, room, BLOCK=block, num_warps=min(16, max(1, block // 512)), **OVERLAPPED)
    return Rows(values, scale)


@triton.jit
def _round(x, values, scale, width, room, BLOCK: tl.constexpr):
    in_turn()
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    codes, s = in_eight(tl.load(x + row * width + col, col < width, 0.0), room)
    tl.store(values + row * width + col, codes, col < width)
    tl.store(scale + row, s)
