"""One matrix in E4M3 on Hopper: many rows by whole tiles, a few by streaming the matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.norm import Rows
from model.engine.routing import ROWS_TILE
from quant.kernels.few_rows import MOST_ROWS, few_rows_product
from quant.kernels.order import DEPTH, UNIT, in_row_order
from quant.kernels.product import multiply
from quant.kernels.tiling import tile_columns


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """weight [N, K] E4M3, its rows ordered so that a thread's results lie side by side, and scale [N] float32."""

    weight: Tensor
    scale: Tensor

    def product(self, rows: Rows, onto: Tensor | None = None) -> Tensor:
        """rows [T, K] in E4M3 -> [T, N] bfloat16, or added to `onto` [T, N], in place."""
        tokens, n = rows.values.shape[0], self.scale.shape[0]
        if tokens <= MOST_ROWS:
            return few_rows_product(rows, self.weight, self.scale, onto)
        processors = torch.cuda.get_device_properties(rows.values.device).multi_processor_count
        columns = tile_columns(-(-tokens // ROWS_TILE), n, processors, adds=onto is not None)
        out = torch.empty(tokens, n, dtype=torch.bfloat16, device=rows.values.device) if onto is None else onto
        multiply(rows, self.weight[None], self.scale, out, columns, adds=onto is not None)
        return out


def fits_dense(outer: int, inner: int) -> bool:
    """Whether there are kernels for a matrix [outer, inner]."""
    return outer % UNIT == 0 and inner % DEPTH == 0


def pack_matrix(codes: Tensor, scale: Tensor) -> PackedMatrix:
    """Codes [N, K] with scale [N] float32; done when this returns, as `few_rows_product` asks."""
    made = PackedMatrix(in_row_order(codes[None], UNIT, gated=False)[0], scale.contiguous())
    torch.cuda.current_stream(codes.device).synchronize()
    return made
