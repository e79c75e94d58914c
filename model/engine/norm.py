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

ROUNDED_UP = tl.constexpr((1 + 2**-4) ** 2)
"""E4M3 may make a row's squared length greater by this. Reading the codes back in the kernel that makes them is no way
to know it: ptxas 12.8 then reads registers that it has not written yet."""

E4M3_MAX = tl.constexpr(448.0)
SCALE_FLOOR = tl.constexpr(2.0**-100)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows ready for a matrix product, in 16 bit or in E4M3.

    values [M, K]; in E4M3 scale [M] float32 gives values · scale. square [M] float32, of rows for gated products in
    E4M3, is at least the squared length of each row as stored.
    """

    values: Tensor
    scale: Tensor | None = None
    square: Tensor | None = None

    @property
    def scales(self) -> Tensor:
        """Those of rows that have to be in E4M3. Raises TypeError for rows in 16 bit."""
        if self.scale is None:
            raise TypeError("rows: expected E4M3 rows with their scales")
        return self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Outputs of experts that are yet to be summed: row t gets the sum over j of share[t, j] · rows[position[t, j]]."""

    rows: Tensor  # [M, d]
    position: Tensor  # [T, K] int32
    share: Tensor  # [T, K] float32


def add_norm(
    h: Tensor,
    mixed: Mixed | None,
    gamma: Tensor,
    eps: float,
    *,
    eight: bool = False,
    squares: bool = False,
) -> Rows:
    """h += what experts give, in place; returns RMSNorm(h) · gamma. h [T, d] 16 bit, contiguous.

    squares: whether a gated product comes next.
    """
    rows, d = h.shape
    values = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else h.dtype, device=h.device)
    scale, square = (
        torch.empty(rows, dtype=torch.float32, device=h.device) if wanted else None for wanted in (eight, squares)
    )
    _add_norm[(rows,)](
        h,
        mixed.rows if mixed else None,
        mixed.position if mixed else None,
        mixed.share if mixed else None,
        gamma,
        values,
        scale,
        square,
        d,
        eps,
        EXPERTS=mixed.position.shape[1] if mixed else 0,
        **whole_row(d),
        **OVERLAPPED,
    )
    return Rows(values, scale, square)


def whole_row(d: int) -> dict[str, int]:
    """Options of a launch whose programs hold a row of d numbers each."""
    return {"BLOCK": triton.next_power_of_2(d), "num_warps": 2 if d <= 2048 else 4}


@triton.jit
def _add_norm(
    h,
    experts,
    position,
    share,
    gamma,
    values,
    scale,
    square,
    d,
    eps,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    in_turn()
    row = from_the_last().to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < d
    at = row * d + col
    x = tl.load(h + at, inside, 0.0).to(tl.float32)
    for j in tl.static_range(EXPERTS):
        source = tl.load(position + row * EXPERTS + j).to(tl.int64)
        weight = tl.load(share + row * EXPERTS + j)
        x += weight * tl.load(experts + source * d + col, inside, 0.0).to(tl.float32)
    if EXPERTS > 0:
        stored = x.to(h.dtype.element_ty)
        tl.store(h + at, stored, inside)
        x = stored.to(tl.float32)
    y = normalised(x, gamma, d, eps, h.dtype.element_ty)
    if scale is None:
        tl.store(values + at, y, inside)
    else:
        codes, s = in_eight(y)
        tl.store(values + at, codes, inside)
        tl.store(scale + row, s)
    if square is not None:
        tl.store(square + row, bounded_square(y))


@triton.jit
def from_the_last():
    """This program's place where the last row comes first: of what a product has written the last rows are still in the
    L2 cache, and of what is written here the first, with which the next product begins."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def normalised(x, gamma, d, eps, dtype: tl.constexpr):
    """x [BLOCK] float32, zeros from column d on -> RMSNorm(x) · gamma, rounded to 16 bit."""
    col = tl.arange(0, x.shape[0])
    inverse = tl.rsqrt(tl.sum(x * x, 0) / d + eps)
    return (x * inverse * tl.load(gamma + col, col < d, 0.0).to(tl.float32)).to(dtype)


@triton.jit
def in_eight(y):
    """y [BLOCK] -> E4M3 and its scale."""
    y = y.to(tl.float32)
    s = scale_of(tl.max(tl.abs(y), 0))
    return (y / s).to(tl.float8e4nv), s


@triton.jit
def scale_of(largest):
    """The scale of numbers of which the largest is so large; positive even of zeros."""
    return tl.maximum(largest / E4M3_MAX, SCALE_FLOOR)


@triton.jit
def bounded_square(y):
    """y [BLOCK] -> at least the squared length that it has in E4M3."""
    y = y.to(tl.float32)
    return tl.maximum(tl.sum(y * y, 0) * ROUNDED_UP, 1e-30)  # a row of zeros is divided by it
