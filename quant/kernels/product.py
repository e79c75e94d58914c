"""The launch of the products of whole tiles of rows in E4M3, by a kernel of Hopper's own instructions."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from model.engine.cuda_module import Kernel, address, load_files, number, product_source, tensor_map
from model.engine.norm import ROUNDED_UP, USUAL_CODE, Rows
from model.engine.routing import ROWS_TILE, ExpertTiles
from quant.kernels.order import DEPTH

_MOST_STAGES, _MOST_BYTES = 8, 230_000  # of shared memory


def multiply(
    rows: Rows,
    weight: Tensor,
    scale: Tensor,
    out: Tensor,
    columns: int,
    *,
    gate_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    unit: float = 1.0,
    tiles: ExpertTiles | None = None,
    gathers: bool = False,
    adds: bool = False,
) -> None:
    """rows [M, K] in E4M3 times weight [E, N', K] in the order of order.py, with scale [E, N]: out [M', N].

    Each tile of rows by its expert's matrix, without tiles all by the only one; gathers: the rows are in the tokens'
    order, [T, K], and looked up for each tile. columns: of a tile, a multiple of 16;
    N' is a multiple of it where there are experts. `out` is in bfloat16, or with out_scale [M'] in E4M3: then it is
    what `PackedExperts` with a unit gives, gated with gate_scale [E, N]. adds: what `out` holds is added. Without tiles
    the matrix is read before the stream's earlier work is done: that must not be what makes it. Raises ValueError for
    experts without tiles, or of another number of rows.
    """
    experts, stored, k = weight.shape
    stored_tiles = -(-stored // columns)
    if experts > 1 and (tiles is None or stored % columns):
        raise ValueError(f"weight: {experts} experts without tiles, or of {stored} rows, no multiple of {columns}")
    device, values = rows.values.device, rows.values
    named = (tiles.expert, tiles.filled, tiles.source, tiles.used) if tiles else (None, None, None, None)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    kind = "plain" if out_scale is None else "eight" if gate_scale is None else "gated"
    _kernel(kind, tiles is not None, gathers, adds, columns, device.index).launch(
        processors // 2 * 2,
        384,
        [
            tensor_map(values, ROWS_TILE // 2),
            tensor_map(weight.view(experts * stored, k), columns // 2),
            tensor_map(out.view(torch.uint8), ROWS_TILE),
            address(out), address(out_scale), address(rows.scales), address(scale), address(gate_scale),
            *map(address, (*named, values, tiles.token if tiles else None)),
            *map(number, (out.shape[0], scale.shape[-1], stored_tiles * columns, k // DEPTH)),
            ctypes.c_float(unit),
        ],
    )  # fmt: skip


def multiply_to_eight(
    rows: Rows,
    weight: Tensor,
    scale: Tensor,
    columns: int,
    unit: float,
    *,
    gate_scale: Tensor | None = None,
    tiles: ExpertTiles | None = None,
    gathers: bool = False,
) -> Rows:
    """`multiply` with results in E4M3 and a scale per row, which are new."""
    room, device = tiles.rows if tiles else rows.values.shape[0], rows.values.device
    out = torch.empty(room, scale.shape[-1], dtype=torch.float8_e4m3fn, device=device)
    out_scale = torch.empty(room, dtype=torch.float32, device=device)
    multiply(
        rows, weight, scale, out, columns,
        gate_scale=gate_scale, out_scale=out_scale, unit=unit, tiles=tiles, gathers=gathers,
    )  # fmt: skip
    return Rows(out, out_scale)


@functools.cache
def _kernel(kind: str, experts: bool, gathers: bool, adds: bool, columns: int, _device: int | None) -> Kernel:
    stage_bytes = (ROWS_TILE + columns) * DEPTH
    stages = min(_MOST_STAGES, (_MOST_BYTES - 1024) // stage_bytes)
    gated, eight = kind == "gated", kind != "plain"
    macros: dict[str, int | str] = {
        "GATED": int(gated), "EIGHT": int(eight), "EXPERTS": int(experts), "GATHERS": int(gathers), "ADDS": int(adds),
        "COLUMNS": columns, "STAGES": stages, "USUAL": f"{USUAL_CODE}f", "ROUNDED_UP": f"{ROUNDED_UP}f",
    }  # fmt: skip
    products = [product_source("product_rows", columns, halves=eight)]
    names = [*([] if gated else ["units.cuh"]), f"{kind}_rows.cuh", "product.cu"]
    return load_files("quant.kernels", names, "grouped", macros, products, stages * stage_bytes + 1024)
