"""Residual sums, RMSNorm and rounding to 8 bit in one pass over the rows."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.overlap import OVERLAPPED, in_turn

E4M3_MAX = 448.0
SCALE_FLOOR = 2.0**-100


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows ready for a matrix product, in 16 bit or in E4M3.

    values [M, K]; in E4M3 scale [M] float32 gives values · scale. square [M] float32, of rows for experts in E4M3, is
    the squared length of each row as stored.
    """

    values: Tensor
    scale: Tensor | None = None
    square: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Outputs of experts that are yet to be summed: row t gets the sum over j of share[t, j] · rows[position[t, j]]."""

    rows: Tensor  # [M, d]
    position: Tensor  # [T, K] int32
    share: Tensor  # [T, K] float32


def add_norm(h: Tensor, add: Tensor | Mixed | None, gamma: Tensor, eps: float, *, eight: bool = False) -> Rows:
    """h += add, in place; returns RMSNorm(h) · gamma. h [T, d] 16 bit, contiguous; add [T, d] or experts' outputs."""
    rows, d = h.shape
    values = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else h.dtype, device=h.device)
    scale = torch.empty(rows, dtype=torch.float32, device=h.device) if eight else None
    mixed = add if isinstance(add, Mixed) else None
    _add_norm[(rows,)](
        h,
        add if isinstance(add, Tensor) else None,
        mixed.rows if mixed else None,
        mixed.position if mixed else None,
        mixed.share if mixed else None,
        gamma,
        values,
        scale,
        d,
        eps,
        EXPERTS=mixed.position.shape[1] if mixed else 0,
        BLOCK=triton.next_power_of_2(d),
        num_warps=4 if d <= 2048 else 8,
        **OVERLAPPED,
    )
    return Rows(values, scale)


@triton.jit
def _add_norm(
    h,
    add,
    experts,
    position,
    share,
    gamma,
    values,
    scale,
    d,
    eps,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    in_turn()
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    col = tl.arange(0, BLOCK)
    inside = (col < d)[None, :]
    at = row[:, None] * d + col[None, :]
    x = tl.load(h + at, inside, 0.0).to(tl.float32)
    if add is not None:
        x += tl.load(add + at, inside, 0.0).to(tl.float32)
    for j in tl.static_range(EXPERTS):
        source = tl.load(position + row * EXPERTS + j).to(tl.int64)
        weight = tl.load(share + row * EXPERTS + j)
        x += weight[:, None] * tl.load(experts + source[:, None] * d + col[None, :], inside, 0.0).to(tl.float32)
    if (add is not None) or (EXPERTS > 0):
        stored = x.to(h.dtype.element_ty)
        tl.store(h + at, stored, inside)
        x = stored.to(tl.float32)
    y = normalised(x, gamma, d, eps).to(h.dtype.element_ty)
    if scale is None:
        tl.store(values + at, y, inside)
    else:
        codes, s = in_eight(y.to(tl.float32))
        tl.store(values + at, codes, inside)
        tl.store(scale + row, s)


@triton.jit
def normalised(x, gamma, d, eps):
    """x [R, BLOCK] float32, zeros from column d on -> RMSNorm(x) · gamma."""
    col = tl.arange(0, x.shape[1])
    inverse = tl.rsqrt(tl.sum(x * x, 1) / d + eps)
    return x * inverse[:, None] * tl.load(gamma + col, col < d, 0.0).to(tl.float32)[None, :]


@triton.jit
def in_eight(y):
    """y [R, BLOCK] float32 -> E4M3 and a scale per row."""
    s = tl.maximum(tl.max(tl.abs(y), 1) / 448.0, 7.888609052210118e-31)
    return (y * (1.0 / s)[:, None]).to(tl.float8e4nv), s
