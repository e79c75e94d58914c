"""Products of rows sorted by expert with each expert's matrix in E4M3, by a kernel of Hopper's own instructions."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from model.engine.cuda_module import (
    Kernel,
    address,
    hopper_source,
    load_kernel,
    number,
    product_source,
    tensor_map,
)
from model.engine.norm import Rows
from model.engine.routing import ROWS_TILE, ExpertTiles, padded
from quant.kernels.order import COLUMNS, DEPTH, in_row_order

_STAGES = 5
_SHARED_BYTES = _STAGES * (ROWS_TILE + COLUMNS) * DEPTH + 1024


@dataclass(frozen=True, slots=True, eq=False)
class PackedExperts:
    """Every expert's matrix in E4M3, its rows ordered so that a thread's results lie side by side.

    weight [E, N', K], N' a multiple of COLUMNS, the rows behind the last zero. scale [E, N] float32 by output; a
    gated product has gate_scale [E, N] besides, and its scale already divided by `reach` (see `ExpertMatrix`).
    """

    weight: Tensor
    scale: Tensor
    gate_scale: Tensor | None

    @property
    def width(self) -> int:
        """Outputs N of a row."""
        return self.scale.shape[1]

    @property
    def eight(self) -> bool:
        """Rows come in E4M3."""
        return True

    def product(self, rows: Rows, experts: ExpertTiles) -> Rows:
        """See `packed_product`."""
        return packed_product(rows, self, experts)

    def of_all(self, rows: Rows) -> Rows:
        """All rows [T, K] by the only expert: [T, N]. Scales and squares have room for whole tiles."""
        tokens = rows.values.shape[0]
        out = packed_product(rows, self, None)
        return Rows(out.values[:tokens], None if out.scale is None else out.scale[:tokens])


def fits_experts(d_model: int, inner: int) -> bool:
    """Whether the kernel has experts of these widths."""
    return d_model % DEPTH == 0 and inner % DEPTH == 0


def pack_experts(codes: Tensor, scale: Tensor, reach: Tensor | None = None) -> PackedExperts:
    """Codes [E, N, K] with scale [E, N] float32; with `reach` [E, N/2] gate and linear rows take turns."""
    experts, n, _ = codes.shape
    weight = in_row_order(codes, gated=reach is not None)
    if reach is None:
        return PackedExperts(weight, scale.contiguous(), None)
    pairs = scale.view(experts, n // 2, 2)
    return PackedExperts(weight, (pairs[..., 1] / reach).contiguous(), pairs[..., 0].contiguous())


def packed_product(rows: Rows, matrix: PackedExperts, tiles: ExpertTiles | None) -> Rows:
    """As `grouped_product`: rows [M, K] in E4M3 -> [M, N] bfloat16, or of a gated matrix E4M3 with a scale per row.

    Without tiles all rows are the only expert's.
    """
    gated = matrix.gate_scale is not None
    experts, stored, k = matrix.weight.shape
    device, tokens = rows.values.device, rows.values.shape[0]
    room = tiles.rows if tiles else padded(tokens)
    if tiles is None and (experts > 1 or rows.scale is None or rows.scale.shape[0] < room):
        raise ValueError(f"rows: {experts} experts without tiles, or scales for less than {room} rows")
    out = torch.empty(room, matrix.width, dtype=torch.float8_e4m3fn if gated else torch.bfloat16, device=device)
    scale = torch.empty(room, dtype=torch.float32, device=device) if gated else None
    named = (tiles.expert, tiles.filled, tiles.used) if tiles else (None, None, None)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    _kernel(gated, device.index).launch(
        processors // 2 * 2,
        384,
        [
            tensor_map(rows.values, ROWS_TILE),
            tensor_map(matrix.weight.view(experts * stored, k), COLUMNS // 2),
            address(out), address(scale), address(rows.scale), address(rows.square if gated else None),
            address(matrix.scale), address(matrix.gate_scale),
            *map(address, named), *map(number, (tokens, matrix.width, stored, k // DEPTH)),
        ],
    )  # fmt: skip
    return Rows(out, scale)


@functools.cache
def _kernel(gated: bool, _device: int | None) -> Kernel:
    sizes = f"#define GATED {int(gated)}\n#define STAGES {_STAGES}\n"
    body = files("quant.kernels").joinpath("experts.cu").read_text(encoding="utf-8")
    return load_kernel(
        sizes + hopper_source() + product_source("product_rows", COLUMNS) + body, "grouped", _SHARED_BYTES
    )
