"""silu(gate) · up and rounding to 8 bit in one pass over the rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows, in_eight
from model.engine.overlap import OVERLAPPED, in_turn


def swiglu(gate_up: Tensor, *, eight: bool = False) -> Rows:
    """gate_up [T, 2I] 16 bit, gate columns first -> silu(gate) · up [T, I], in E4M3 with a scale per row if `eight`."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    values = torch.empty(rows, inner, dtype=torch.float8_e4m3fn if eight else gate_up.dtype, device=gate_up.device)
    scale = torch.empty(rows, dtype=torch.float32, device=gate_up.device) if eight else None
    block = triton.next_power_of_2(inner)
    _swiglu[(rows,)](gate_up, values, scale, inner, BLOCK=block, num_warps=min(16, max(4, block // 512)), **OVERLAPPED)
    return Rows(values, scale)


@triton.jit
def _swiglu(gate_up, values, scale, inner, BLOCK: tl.constexpr):
    in_turn()
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < inner
    gate = tl.load(gate_up + row * 2 * inner + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + col, inside, 0.0).to(tl.float32)
    y = (gate / (1.0 + tl.exp(-gate)) * up).to(gate_up.dtype.element_ty)
    if scale is None:
        tl.store(values + row * inner + col, y, inside)
    else:
        codes, s = in_eight(y)
        tl.store(values + row * inner + col, codes, inside)
        tl.store(scale + row, s)
