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

    values [M, K]; in E4M3 scale [M] float32 gives values · scale. square [M] float32, where it was asked for, is
    the squared length of each row as stored. plain [M, K]: the same rows in 16 bit, where they were asked for.
    """

    values: Tensor
    scale: Tensor | None = None
    square: Tensor | None = None
    plain: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Outputs of experts that are yet to be summed: row t gets the sum over j of share[t, j] · rows[position[t, j]]."""

    rows: Tensor  # [M, d]
    position: Tensor  # [T, K] int32
    share: Tensor  # [T, K] float32


def add_norm(
    h: Tensor,
    add: Tensor | Mixed | None,
    gamma: Tensor,
    eps: float,
    *,
    eight: bool = False,
    want_plain: bool = False,
    want_square: bool = False,
    capacity: int = 0,
) -> Rows:
    """h += add, in place; returns RMSNorm(h) · gamma.

    h [T, d] 16 bit, contiguous; add [T, d] or the experts' outputs. The values' storage has `capacity` rows, at
    least T, so that experts find room behind them; scale and square likewise.
    """
    rows, d = h.shape
    room = max(capacity, rows)
    values = torch.empty(room, d, dtype=torch.float8_e4m3fn if eight else h.dtype, device=h.device)
    scale = torch.empty(room, dtype=torch.float32, device=h.device) if eight else None
    square = torch.empty(room, dtype=torch.float32, device=h.device) if want_square else None
    plain = torch.empty_like(h) if eight and want_plain else None
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
        square,
        plain,
        d,
        eps,
        EXPERTS=mixed.position.shape[1] if mixed else 0,
        BLOCK=triton.next_power_of_2(d),
        num_warps=4 if d <= 2048 else 8,
        **OVERLAPPED,
    )
    return Rows(values, scale, square, plain if eight else (values[:rows] if want_plain else None))


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
    square,
    plain,
    d,
    eps,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    in_turn()
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < d
    at = row * d + col
    x = tl.load(h + at, inside, 0.0).to(tl.float32)
    if add is not None:
        x += tl.load(add + at, inside, 0.0).to(tl.float32)
    for j in tl.static_range(EXPERTS):
        source = tl.load(position + row * EXPERTS + j).to(tl.int64)
        weight = tl.load(share + row * EXPERTS + j)
        x += weight * tl.load(experts + source * d + col, inside, 0.0).to(tl.float32)
    if (add is not None) or (EXPERTS > 0):
        stored = x.to(h.dtype.element_ty)
        tl.store(h + at, stored, inside)
        x = stored.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 0) / d + eps)
    y = x * inverse * tl.load(gamma + col, inside, 0.0).to(tl.float32)
    y16 = y.to(h.dtype.element_ty)
    y = y16.to(tl.float32)
    if scale is None:
        tl.store(values + at, y16, inside)
    else:
        s = tl.maximum(tl.max(tl.abs(y), 0) / 448.0, 7.888609052210118e-31)
        codes = (y / s).to(tl.float8e4nv)
        tl.store(values + at, codes, inside)
        tl.store(scale + row, s)
        y = codes.to(tl.float32) * s
        if plain is not None:
            tl.store(plain + at, y16, inside)
    if square is not None:
        tl.store(square + row, tl.maximum(tl.sum(y * y, 0), 1e-30))  # a row of zeros is divided by it
