"""Products of rows sorted by expert with each expert's matrix in E4M3, or of all rows with one gated matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.norm import Rows
from model.engine.routing import ExpertTiles
from quant.kernels.order import COLUMNS, DEPTH, GATED_COLUMNS, MOST_A_PRODUCT, STORED_CODE, WIDEST, in_row_order
from quant.kernels.product import multiply, multiply_to_eight

_MOST_GATE, _MOST_LINEAR = 8.0, 2.0**15
"""Of gated products' factors, the former but for a factor of two: so sums stay where 16 bit have all their digits.
Beside much greater gates, those of no more than 2^-13 of them count as little."""

_LEAST_UNIT = 2.0**-32
"""Gates that are all zero have no unit, and their linear parts nothing to be scaled for."""

_ROOM = 64
"""So many times as long as usual the longest row of a matrix may be before what it gives decides the unit."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedExperts:
    """Every expert's matrix in E4M3, its rows ordered so that a thread's results lie side by side.

    weight [E, N', K], N' a multiple of COLUMNS, or of GATED_COLUMNS, the rows behind the last zero. scale [E, N]
    float32 by output; a gated product has gate_scale [E, N] besides, and its scale divided by `reach` (see
    `ExpertMatrix`). unit: of results in E4M3, as gated ones always are, see `pack_experts` and `pack_gated`.
    """

    weight: Tensor
    scale: Tensor
    gate_scale: Tensor | None = None
    unit: float | None = None

    @property
    def eight(self) -> bool:
        """Rows come in E4M3."""
        return True

    @property
    def gated(self) -> bool:
        """Whether outputs are silu(gate) · linear."""
        return self.gate_scale is not None

    @property
    def gathers(self) -> bool:
        """Gated products do."""
        return self.gated

    def product(self, rows: Rows, experts: ExpertTiles) -> Rows:
        """As `grouped_product`: rows [M, K] in E4M3 -> [M, N] bfloat16, or with a unit E4M3 and a scale per row."""
        return self._times(rows, experts)

    def of_all(self, rows: Rows) -> Rows:
        """All rows [T, K] by the only expert: [T, N]."""
        return self._times(rows, None)

    def _times(self, rows: Rows, tiles: ExpertTiles | None) -> Rows:
        if self.unit is not None:
            columns = GATED_COLUMNS if self.gated else COLUMNS
            gathers = self.gathers and tiles is not None
            return multiply_to_eight(
                rows, self.weight, self.scale, columns, self.unit,
                gate_scale=self.gate_scale, tiles=tiles, gathers=gathers,
            )  # fmt: skip
        room = tiles.rows if tiles else rows.values.shape[0]
        out = torch.empty(room, self.scale.shape[1], dtype=torch.bfloat16, device=rows.values.device)
        multiply(rows, self.weight, self.scale, out, COLUMNS, tiles=tiles)
        return Rows(out)


def fits_experts(d_model: int, inner: int) -> bool:
    """Whether the kernel has experts of these widths; sums of wider ones might not stay in 16 bit."""
    return d_model % DEPTH == 0 and inner % DEPTH == 0 and d_model <= WIDEST


def pack_experts(codes: Tensor, scale: Tensor, *, eight: bool) -> PackedExperts:
    """Codes [E, N, K] with scale [E, N] float32. eight: results in E4M3, whose unit is about a third of a usual row's
    length: so a result is about three times as great as the codes that it is made of, where they are like noise."""
    weight = in_row_order(codes, COLUMNS, gated=False)
    if not eight:
        return PackedExperts(weight, scale.contiguous())
    usual = torch.maximum(scale.square().mean().sqrt(), scale.amax() / _ROOM).item()
    return PackedExperts(weight, scale.contiguous(), unit=usual * STORED_CODE * codes.shape[2] ** 0.5 / 3)


def pack_gated(codes: Tensor, scale: Tensor, reach: Tensor) -> PackedExperts:
    """Codes [E, N, K] with scale [E, N] and reach [E, N/2] float32, in which gate and linear rows take turns.

    unit is a power of two that the gates' scales are divided by and the linear parts' multiplied with: so both stay
    where 16 bit have all their digits. Done when this returns, as `multiply` asks.
    """
    gate, linear = scale.view(scale.shape[0], -1, 2).unbind(-1)
    unit = max(gate.amax().log2().floor().exp2().item() / _MOST_GATE, _LEAST_UNIT)
    weight = in_row_order(codes, GATED_COLUMNS, gated=True)
    factor = (linear * (unit / reach)).clamp_max(_MOST_LINEAR / (MOST_A_PRODUCT * codes.shape[2]))
    made = PackedExperts(weight, factor.contiguous(), (gate / unit).contiguous(), unit)
    torch.cuda.current_stream(codes.device).synchronize()
    return made
