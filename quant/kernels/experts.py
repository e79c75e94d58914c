"""Products of rows sorted by expert with each expert's matrix in E4M3, or of all rows with one gated matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.norm import Rows
from model.engine.routing import ExpertTiles
from quant.kernels.order import COLUMNS, DEPTH, in_row_order
from quant.kernels.product import multiply


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
    def eight(self) -> bool:
        """Rows come in E4M3."""
        return True

    def product(self, rows: Rows, experts: ExpertTiles) -> Rows:
        """As `grouped_product`: rows [M, K] in E4M3 -> [M, N] bfloat16, or gated E4M3 with a scale per row."""
        return self._times(rows, experts.rows, experts)

    def of_all(self, rows: Rows) -> Rows:
        """All rows [T, K] by the only expert: [T, N]."""
        return self._times(rows, rows.values.shape[0], None)

    def _times(self, rows: Rows, room: int, tiles: ExpertTiles | None) -> Rows:
        device, n = rows.values.device, self.scale.shape[1]
        if self.gate_scale is None:
            out = torch.empty(room, n, dtype=torch.bfloat16, device=device)
            multiply(rows, self.weight, self.scale, out, COLUMNS, tiles=tiles)
            return Rows(out)
        out = torch.empty(room, n, dtype=torch.float8_e4m3fn, device=device)
        scale = torch.empty(room, dtype=torch.float32, device=device)
        multiply(rows, self.weight, self.scale, out, COLUMNS, gate=(self.gate_scale, scale), tiles=tiles)
        return Rows(out, scale)


def fits_experts(d_model: int, inner: int) -> bool:
    """Whether the kernel has experts of these widths."""
    return d_model % DEPTH == 0 and inner % DEPTH == 0


def pack_experts(codes: Tensor, scale: Tensor, reach: Tensor | None = None) -> PackedExperts:
    """Codes [E, N, K] with scale [E, N] float32; with `reach` [E, N/2] gate and linear rows take turns."""
    experts, n, _ = codes.shape
    weight = in_row_order(codes, COLUMNS, gated=reach is not None)
    if reach is None:
        return PackedExperts(weight, scale.contiguous(), None)
    pairs = scale.view(experts, n // 2, 2)
    return PackedExperts(weight, (pairs[..., 1] / reach).contiguous(), pairs[..., 0].contiguous())
