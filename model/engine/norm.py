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

E4M3_MAX = tl.constexpr(448.0)
SCALE_FLOOR = tl.constexpr(2.0**-100)

USUAL_CODE = 0.75
"""Root mean square of a normed row's codes. There the fewest bits change from one Gaussian number's code to the next's,
3.2 of eight (3.5 at sixteen times it), and bits that change are what products take power for (ARCHITECTURE, 25)."""

USUAL = tl.constexpr(USUAL_CODE)

ROUNDED_UP = 1 + 2**-4
"""E4M3 may make a row longer by this. Reading the codes back in the kernel that makes them is no way to know how long
they are: ptxas 12.8 then reads registers that it has not written yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows ready for a matrix product, in 16 bit or in E4M3.

    values [M, K]; in E4M3 scale [M] float32 gives values · scale. Of normed rows it is their root mean square, before
    they were rounded, over USUAL_CODE, which is what a product knows a bound of its results by.
    """

    values: Tensor
    scale: Tensor | None = None

    @property
    def scales(self) -> Tensor:
        """Those of rows that have to be in E4M3. Raises TypeError for rows in 16 bit."""
        if self.scale is None:
            raise TypeError("rows: expected E4M3 rows with their scales")
        return self.scale

    @property
    def sixteen(self) -> Tensor:
        """The rows in 16 bit; those in E4M3 are multiplied out."""
        return self.values if self.scale is None else (self.values.float() * self.scale[:, None]).bfloat16()

    def of(self, index: Tensor) -> Rows:
        """The rows of these numbers [T]."""
        if self.scale is None:
            return Rows(self.values[index])
        return Rows(self.values.view(torch.uint8)[index].view(self.values.dtype), self.scale[index])


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Outputs of experts that are yet to be summed: row t gets the sum over j of share[t, j] · rows[place].

    The places of a row are those that `routing.Choice` says.
    """

    rows: Rows  # [M, d]
    chosen: Tensor  # [T, k] int32
    begin: Tensor  # [W] int32
    share: Tensor  # [T, S+k] float32
    padded: int  # rows of a shared expert


def add_norm(
    h: Tensor,
    mixed: Mixed | None,
    gamma: Tensor,
    eps: float,
    *,
    eight: bool = False,
) -> Rows:
    """h += what experts give, in place; returns RMSNorm(h) · gamma. h [T, d] 16 bit, contiguous."""
    rows, d = h.shape
    values = torch.empty(rows, d, dtype=torch.float8_e4m3fn if eight else h.dtype, device=h.device)
    scale = torch.empty(rows, dtype=torch.float32, device=h.device) if eight else None
    _add_norm[(rows,)](
        h,
        mixed.rows.values if mixed else None,
        mixed.rows.scale if mixed else None,
        mixed.chosen if mixed else None,
        mixed.begin if mixed else None,
        mixed.share if mixed else None,
        gamma,
        values,
        scale,
        eps,
        mixed.padded if mixed else 0,
        TOP_K=mixed.chosen.shape[1] if mixed else 0,
        SHARED=mixed.share.shape[1] - mixed.chosen.shape[1] if mixed else 0,
        WIDTH=mixed.begin.shape[0] if mixed else 1,
        **whole_row(d),
        **OVERLAPPED,
    )
    return Rows(values, scale)


def whole_row(d: int) -> dict[str, int]:
    """Options of a launch whose programs hold a row of d numbers each, CHUNK by CHUNK: sixteen bytes a thread."""
    warps = 1 if d <= 2048 else 2
    return {"D": d, "CHUNK": 256 * warps, "num_warps": warps}


@triton.jit
def _add_norm(
    h, experts, experts_scale, chosen, begin, share, gamma, values, scale, eps, padded,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    in_turn()
    row = from_the_last().to(tl.int64)
    sources: tl.tuple = ()
    weights: tl.tuple = ()
    for j in tl.static_range(SHARED + TOP_K):
        sources += (expert_place(chosen, begin, row, j, padded, TOP_K, SHARED, WIDTH).to(tl.int64),)
        weight = tl.load(share + row * (SHARED + TOP_K) + j)
        if experts_scale is not None:
            weight *= tl.load(experts_scale + sources[j])
        weights += (weight,)
    x: tl.tuple = ()
    for start in tl.static_range(0, D, CHUNK):
        part = chunk_at(h, row, start, D, CHUNK)
        for j in tl.static_range(SHARED + TOP_K):
            part += weights[j] * chunk_at(experts, sources[j], start, D, CHUNK)
        x += (part,)
    if SHARED + TOP_K > 0:
        store_row(h, row, x, 1.0, D, CHUNK)
    y, factor, s = normalised(x, gamma, eps, D, CHUNK, values.dtype.element_ty)
    store_row(values, row, y, factor, D, CHUNK)
    if scale is not None:
        tl.store(scale + row, s)


@triton.jit
def expert_place(
    chosen, begin, token, j: tl.constexpr, padded, TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Where the j-th of a token's experts, the shared ones first, has the token's row; see `routing.Choice`."""
    place = j * padded + token
    if j >= SHARED:
        code = tl.load(chosen + token * TOP_K + (j - SHARED))
        place = tl.load(begin + code % WIDTH) + code // WIDTH
    return place


@triton.jit
def from_the_last():
    """This program's place where the last row comes first: of what a product has written the last rows are still in the
    L2 cache, and of what is written here the first, with which the next product begins."""
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def row_at(rows, row, D: tl.constexpr, CHUNK: tl.constexpr):
    """A row of a matrix in float32, in chunks, zeros behind its end."""
    x: tl.tuple = ()
    for start in tl.static_range(0, D, CHUNK):
        x += (chunk_at(rows, row, start, D, CHUNK),)
    return x


@triton.jit
def chunk_at(rows, row, start: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr):
    """A chunk of a row in float32."""
    col = start + tl.arange(0, CHUNK)
    return tl.load(rows + row * D + col, col < D, 0.0).to(tl.float32)


@triton.jit
def store_row(rows, row, x, factor, D: tl.constexpr, CHUNK: tl.constexpr):
    """A row in chunks, times a factor, in the matrix's format."""
    for c in tl.static_range(len(x)):
        col = c * CHUNK + tl.arange(0, CHUNK)
        tl.store(rows + row * D + col, (x[c] * factor).to(rows.dtype.element_ty), col < D)


@triton.jit
def normalised(x, gamma, eps, D: tl.constexpr, CHUNK: tl.constexpr, dtype: tl.constexpr):
    """A row in chunks -> y in chunks, a factor and a scale: RMSNorm(x) · gamma is y · factor · scale.

    The scale is 1 but for E4M3: there it is that of `Rows`. Nothing is divided but what the whole row shares: on a busy
    card it is instructions that such a kernel waits for.
    """
    y: tl.tuple = ()
    squares = tl.zeros([CHUNK], tl.float32)
    lengths = tl.zeros([CHUNK], tl.float32)
    weight = row_at(gamma, 0, D, CHUNK)
    for c in tl.static_range(len(x)):
        y += (x[c] * weight[c],)
        squares += x[c] * x[c]
        lengths += y[c] * y[c]
    factor = tl.rsqrt(tl.sum(squares, 0) / D + eps)
    s = 1.0
    if dtype == tl.float8e4nv:
        s = tl.maximum(tl.sqrt(tl.sum(lengths, 0) / D) * factor / USUAL, SCALE_FLOOR)
        factor /= s
    return y, factor, s


@triton.jit
def in_eight(y, room=1.0):
    """y [BLOCK] -> E4M3, of which the greatest is 448 / room, and its scale."""
    y = y.to(tl.float32)
    s = scale_of(tl.max(tl.abs(y), 0) * room)
    return (y / s).to(tl.float8e4nv), s


@triton.jit
def scale_of(largest):
    """The scale of numbers of which the largest is so large; positive even of zeros."""
    return tl.maximum(largest / E4M3_MAX, SCALE_FLOOR)
