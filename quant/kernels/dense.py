"""One matrix in E4M3 on Hopper: many rows by whole tiles, a few by streaming the matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.norm import ROUNDED_UP, USUAL_CODE, Rows
from model.engine.routing import ROWS_TILE
from quant.kernels.few_rows import MOST_ROWS, few_rows_product
from quant.kernels.order import DEPTH, UNIT, WIDEST, in_row_order
from quant.kernels.product import multiply, multiply_to_eight
from quant.kernels.tiling import tile_columns
from quant.primitives import E4M3_MAX, SCALE_FLOOR


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """weight [N, K] E4M3, its rows ordered so that a thread's results lie side by side, and scale [N] float32.

    unit: no result of a normed row is greater than 448 times it and the row's scale.
    """

    weight: Tensor
    scale: Tensor
    unit: float

    def product(self, rows: Rows, onto: Tensor | None = None) -> Tensor:
        """rows [T, K] in E4M3 -> [T, N] bfloat16, or added to `onto` [T, N], in place."""
        tokens = rows.values.shape[0]
        if tokens <= MOST_ROWS:
            return few_rows_product(rows, self.weight, self.scale, onto)
        adds = onto is not None
        shape = tokens, self.scale.shape[0]
        out = torch.empty(shape, dtype=torch.bfloat16, device=rows.values.device) if onto is None else onto
        multiply(rows, self.weight[None], self.scale, out, self._columns(rows, adds=adds), adds=adds)
        return out

    def narrow_product(self, rows: Rows, room: float = 1.0) -> Rows:
        """Normed rows [T, K] -> [T, N] in E4M3, each with a scale by which no code is beyond 448 / room; of few rows,
        or of very wide ones, whose sums might not stay in 16 bit, in bfloat16."""
        tokens, k = rows.values.shape
        if tokens <= MOST_ROWS or k > WIDEST:
            return Rows(self.product(rows))
        unit = self.unit * room
        return multiply_to_eight(rows, self.weight[None], self.scale, self._columns(rows, adds=False), unit)

    def _columns(self, rows: Rows, *, adds: bool) -> int:
        """How wide tiles are."""
        processors = torch.cuda.get_device_properties(rows.values.device).multi_processor_count
        return tile_columns(-(-rows.values.shape[0] // ROWS_TILE), self.scale.shape[0], processors, adds=adds)


def fits_dense(outer: int, inner: int) -> bool:
    """Whether there are kernels for a matrix [outer, inner]."""
    return outer % UNIT == 0 and inner % DEPTH == 0


def pack_matrix(codes: Tensor, scale: Tensor) -> PackedMatrix:
    """Codes [N, K] with scale [N] float32; done when this returns, as products ask."""
    longest = (torch.linalg.vector_norm(codes.bfloat16(), dim=1, dtype=torch.float32) * scale).amax()
    row = USUAL_CODE * codes.shape[1] ** 0.5 * ROUNDED_UP
    weight = in_row_order(codes[None], UNIT, gated=False)[0]
    made = PackedMatrix(weight, scale.contiguous(), row * max(longest.item(), SCALE_FLOOR) / E4M3_MAX)
    torch.cuda.current_stream(codes.device).synchronize()
    return made
