"""The engine's arithmetic for FP8 checkpoints: each matrix as it is stored, each product in the faster format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.arithmetic import Context, ExpertProduct, GatedProduct, SixteenBit
from model.engine.head import Head, HeadWeights
from model.engine.norm import Rows
from quant.crossover import Crossover
from quant.kernels.eight_bit import EightBit, Matrix
from quant.kernels.rows import round_rows_to_eight
from quant.narrow import ALL_NARROW, Narrow

_EIGHT, _SIXTEEN = EightBit(), SixteenBit()


@dataclass(frozen=True, slots=True, eq=False)
class StoredMatrix:
    """One matrix in the formats that its products are served in: E4M3 with scales, 16 bit, or both."""

    eight: Matrix | None
    sixteen: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(inner, outer)."""
        weight = self.sixteen if self.eight is None else self.eight.weight
        if weight is None:
            raise TypeError("matrix: stored in no format")
        return weight.shape[1], weight.shape[0]


@dataclass(frozen=True, slots=True)
class Stored:
    """E4M3 where the checkpoint has it and it is not slower, else 16 bit.

    Weights come in float32 where they are stored in E4M3, in 16 bit where they are not, and the latter stay so. A
    product below its crossover multiplies the same rounded weights, decoded once to 16 bit, by rows that are not
    rounded: never worse than the variant that was quantised. rows: the row counts that will be served; the decoded copy
    is kept where one of them chooses it. narrow: what else is in E4M3; what the cross attention over a context in E4M3
    hands over is multiplied so at any size.
    """

    crossover: Crossover
    rows: tuple[int, ...]
    narrow: Narrow = ALL_NARROW
    name: str = "fp8"
    eight: bool = True

    def takes_eight(self, matrix: StoredMatrix, rows: int) -> bool:
        """As measured; a matrix that has one format only takes that."""
        if matrix.eight is None or matrix.sixteen is None:
            return matrix.sixteen is None
        return self.crossover.takes_eight(rows, *matrix.shape)

    def matrix(self, weight: Tensor) -> StoredMatrix:
        """Codes and scales are recovered from the float32 product of the stored ones, see `EightBit.matrix`."""
        if weight.dtype is not torch.float32:
            return StoredMatrix(None, weight)
        outer, inner = weight.shape
        chosen = {self.crossover.takes_eight(rows, inner, outer) for rows in self.rows}
        return StoredMatrix(_EIGHT.matrix(weight), weight.bfloat16() if False in chosen else None)

    def product(self, rows: Rows, matrix: StoredMatrix) -> Tensor:
        """In the rows' format where the matrix has it; rows in 16 bit are rounded for a matrix in E4M3 alone."""
        rows, chosen = self._matched(rows, matrix)
        return _SIXTEEN.product(rows, chosen) if isinstance(chosen, Tensor) else _EIGHT.product(rows, chosen)

    def own_product(self, rows: Rows, matrix: StoredMatrix) -> Rows:
        """Of rows in E4M3 as `EightBit.own_product`, else as `product`."""
        if rows.scale is None or matrix.eight is None:
            return Rows(self.product(rows, matrix))
        return EightBit(narrow=self.narrow).own_product(rows, matrix.eight)

    def queries(self, rows: Rows, matrix: StoredMatrix, head_dim: int) -> Rows:
        """Of rows in E4M3 for a context in E4M3 as `EightBit.queries`, else as `product`."""
        if rows.scale is None or matrix.eight is None or not self.narrow.context:
            return Rows(self.product(rows, matrix))
        return _EIGHT.queries(rows, matrix.eight, head_dim)

    def add_product(self, h: Tensor, rows: Rows, matrix: StoredMatrix) -> None:
        """As `product` chooses."""
        rows, chosen = self._matched(rows, matrix)
        if isinstance(chosen, Tensor):
            _SIXTEEN.add_product(h, rows, chosen)
        else:
            _EIGHT.add_product(h, rows, chosen)

    def _matched(self, rows: Rows, matrix: StoredMatrix) -> tuple[Rows, Matrix | Tensor]:
        """Rows and matrix in one format."""
        if rows.scale is not None:
            if matrix.eight is not None:
                return rows, matrix.eight
            rows = Rows(rows.sixteen)
        if matrix.sixteen is not None and not self.takes_eight(matrix, rows.values.shape[0]):
            return rows, matrix.sixteen
        if matrix.eight is None:
            raise TypeError("matrix: stored in no format")
        return round_rows_to_eight(rows.values), matrix.eight

    def experts(self, up: Tensor, down: Tensor) -> tuple[ExpertProduct, ExpertProduct]:
        """E4M3 with a scale per row, whatever blocks they are stored in; 16 bit unless both stacks are E4M3."""
        if up.dtype == down.dtype == torch.float32:
            return EightBit(narrow=self.narrow).experts(up, down)
        return _SIXTEEN.experts(up.bfloat16(), down.bfloat16())

    def gated(self, up: Tensor, down: Tensor) -> tuple[GatedProduct, StoredMatrix] | None:
        """Where both are stored in E4M3."""
        if not up.dtype == down.dtype == torch.float32 or (made := _EIGHT.gated(up, down)) is None:
            return None
        return made[0], StoredMatrix(made[1], None)

    def head(self, weights: HeadWeights) -> Head:
        """In 16 bit, as it is stored, but screened in E4M3."""
        return _EIGHT.head(weights)

    def context(self, key: Tensor, value: Tensor, lengths: Tensor) -> Context:
        """In E4M3 with a scale per request and head, or as they are."""
        return (_EIGHT if self.narrow.context else _SIXTEEN).context(key, value, lengths)
