"""Products of rows sorted by expert with each expert's matrix, in one launch, in 16 bit or in E4M3."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from model.engine.norm import ROUNDED_UP, USUAL_CODE, Rows
from model.engine.overlap import OVERLAPPED, in_turn
from model.engine.routing import ROWS_TILE, ExpertTiles

SQUARE = tl.constexpr((USUAL_CODE * ROUNDED_UP) ** 2 / 448.0)
"""Times a normed row's scale, squared, and its width: at least its squared length over 448."""

LEAST_SCALE = tl.constexpr(1e-18)
"""A row of zeros is divided by its square."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMatrix:
    """weight [E, N, K]; in E4M3 scale [E, N] float32. For a gated product rows 2i and 2i+1 are gate and up of i.

    reach [E, N/2] float32, gated products in E4M3 only: |gate row i| · |up row i| in Euclidean length.
    """

    weight: Tensor
    scale: Tensor | None = None
    reach: Tensor | None = None
    gated: bool = False

    @property
    def eight(self) -> bool:
        """Whether rows come in E4M3."""
        return self.scale is not None

    @property
    def gathers(self) -> bool:
        """Never: rows come sorted by expert."""
        return False

    def product(self, rows: Rows, experts: ExpertTiles) -> Rows:
        """See `grouped_product`."""
        return grouped_product(rows, self, experts, gated=self.gated)


@dataclass(frozen=True, slots=True)
class GroupedTiles:
    """How the kernel cuts its work: columns and depth (bytes) of a tile, warps, pipeline depth."""

    columns: int = 256
    depth: int = 128
    warps: int = 8
    stages: int = 3


def interleave(up: Tensor) -> Tensor:
    """[E, 2I, d] with gate rows before up rows -> gate and up rows in turns."""
    experts, rows, d = up.shape
    return up.view(experts, 2, rows // 2, d).transpose(1, 2).reshape(experts, rows, d)


def grouped_product(
    rows: Rows, matrix: ExpertMatrix, experts: ExpertTiles, *, gated: bool = False, tiles: GroupedTiles | None = None
) -> Rows:
    """rows [M, K] in tiles of ROWS_TILE of one expert -> rows · weight[expert]ᵀ [M, N], 16 bit.

    gated: silu(gate) · up [M, N/2] instead, in the rows' own format. In E4M3 its scale is known beforehand: by
    Cauchy and Schwarz |silu(g)·u| <= |x|²·|gate row|·|up row|, so the values are stored over |x|²·reach / 448; normed
    rows have |x| in their scale, and the next matrix has reach in its columns. Rows behind the used tiles are left
    alone.
    """
    tiles = tiles or GroupedTiles()
    weight = matrix.weight
    _, n, k = weight.shape
    eight = matrix.scale is not None
    depth = tiles.depth // weight.element_size()
    room = experts.rows
    wide = n // 2 if gated else n
    dtype = torch.bfloat16 if eight and not gated else weight.dtype
    out = torch.empty(room, wide, dtype=dtype, device=weight.device)
    scale = torch.empty(room, dtype=torch.float32, device=weight.device) if gated and eight else None
    programs = torch.cuda.get_device_properties(weight.device).multi_processor_count if weight.is_cuda else 3
    _grouped[(programs,)](
        TensorDescriptor.from_tensor(rows.values, [ROWS_TILE, depth]),
        TensorDescriptor.from_tensor(weight.view(-1, k), [tiles.columns, depth]),
        TensorDescriptor.from_tensor(out, [ROWS_TILE, tiles.columns // 2 if gated else tiles.columns]),
        rows.scale,
        scale,
        matrix.scale,
        matrix.reach if gated else None,
        experts.expert,
        experts.used,
        n,
        k,
        GATED=gated,
        BM=ROWS_TILE,
        BN=tiles.columns,
        BK=depth,
        PROGRAMS=programs,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        **OVERLAPPED,
    )
    return Rows(out, scale)


@triton.jit
def _grouped(
    a, b, out, a_scale, out_scale, b_scale, reach, expert_of_tile, used, n, k,
    GATED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """One program per multiprocessor walks over the tiles, columns first, so that rows stay in the cache."""
    in_turn()
    column_tiles = tl.cdiv(n, BN)
    count = tl.load(used) * column_tiles
    for tile in tl.range(tl.program_id(0), count, PROGRAMS, flatten=True):
        row, column = tile // column_tiles * BM, tile % column_tiles * BN
        expert = tl.load(expert_of_tile + tile // column_tiles)
        acc = tl.zeros([BM, BN], tl.float32)
        for depth in tl.range(0, k, BK):
            acc = tl.dot(a.load([row, depth]), b.load([expert * n + column, depth]).T, acc)
        at = row + tl.arange(0, BM)
        cols = column + tl.arange(0, BN)
        if a_scale is not None:
            acc = acc * tl.load(a_scale + at)[:, None]
            acc = acc * tl.load(b_scale + expert * n + cols, cols < n, 0.0)[None, :]
        if GATED:
            gate, up = tl.split(tl.reshape(acc, [BM, BN // 2, 2]))
            acc = gate / (1.0 + tl.exp(-gate)) * up
            half = column // 2 + tl.arange(0, BN // 2)
            if a_scale is not None:
                usual = tl.maximum(tl.load(a_scale + at), LEAST_SCALE)
                one = usual * usual * (k * SQUARE)
                bound = tl.load(reach + expert * (n // 2) + half, half < n // 2, 1.0)
                acc = tl.clamp(acc / one[:, None] / bound[None, :], -448.0, 448.0)
                if column == 0:
                    tl.store(out_scale + at, one)
            out.store([row, column // 2], acc.to(out.dtype))
        else:
            out.store([row, column], acc.to(out.dtype))
