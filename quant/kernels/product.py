"""The launch of the products of whole tiles of rows in E4M3, by a kernel of Hopper's own instructions."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from model.engine.cuda_module import Kernel, address, load_files, number, product_source, tensor_map
from model.engine.norm import Rows
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
    gate: tuple[Tensor, Tensor] | None = None,
    tiles: ExpertTiles | None = None,
    adds: bool = False,
) -> None:
    """rows [M, K] in E4M3 times weight [E, N', K] in the order of order.py, with scale [E, N]: out [M', N] bfloat16.

    Each tile of rows by its expert's matrix, without tiles all by the only one. columns: of a tile, a multiple of 16;
    N' is a multiple of it where there are experts. gate: the gates' scale [E, N], and the scales [M'] of the rows of
    `out`, to be written; `out` is then in E4M3 and `scale` divided by the reach (see `ExpertMatrix`). adds: what `out`
    holds is added. Raises ValueError for experts without tiles, or of another number of rows.
    """
    gate_scale, out_scale = gate or (None, None)
    experts, stored, k = weight.shape
    stored_tiles = -(-stored // columns)
    if experts > 1 and (tiles is None or stored % columns):
        raise ValueError(f"weight: {experts} experts without tiles, or of {stored} rows, no multiple of {columns}")
    device, tokens = rows.values.device, rows.values.shape[0]
    named = (tiles.expert, tiles.filled, tiles.used) if tiles else (None, None, None)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    _kernel(gate is not None, adds, columns, device.index).launch(
        processors // 2 * 2,
        384,
        [
            tensor_map(rows.values, ROWS_TILE),
            tensor_map(weight.view(experts * stored, k), columns // 2),
            tensor_map(out.view(torch.uint8), ROWS_TILE),
            address(out), address(out_scale), address(rows.scales), address(rows.square if gate else None),
            address(scale), address(gate_scale),
            *map(address, named), *map(number, (tokens, scale.shape[-1], stored_tiles * columns, k // DEPTH)),
        ],
    )  # fmt: skip


@functools.cache
def _kernel(gated: bool, adds: bool, columns: int, _device: int | None) -> Kernel:
    stage_bytes = (ROWS_TILE + columns) * DEPTH
    stages = min(_MOST_STAGES, (_MOST_BYTES - 1024) // stage_bytes)
    sizes = {"GATED": int(gated), "ADDS": int(adds), "COLUMNS": columns, "STAGES": stages}
    products = [product_source("product_rows", columns)]
    results = "gated_rows.cuh" if gated else "plain_rows.cuh"
    return load_files("quant.kernels", [results, "product.cu"], "grouped", sizes, products, stages * stage_bytes + 1024)
