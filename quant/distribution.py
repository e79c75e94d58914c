"""How widely weights and activations spread: what the FP8 paper reads to judge whether a model can be quantised.

arXiv 2603.11486: a traditional ranker has variances about 1e7 and magnitudes beyond 1000; OneRec-V2 has variances
below 0.1, like a language model, and so fits into eight bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.experts import MixtureOfExperts
from quant.errors import QuantError
from quant.experts import Fp8Experts
from quant.table import Table, number, table

PIECE = 2**20
"""Values looked at together."""


@dataclass(frozen=True, slots=True)
class Spread:
    """variance (about the mean), largest magnitude, and the 99th percentile of the magnitudes (nearest rank)."""

    variance: float
    absmax: float
    absp99: float

    @classmethod
    def of(cls, *parts: Tensor) -> Spread:
        """Of all values of all parts, in float32; raises QuantError when there are none.

        In pieces, with the percentile by counting bit patterns: no copy of a large weight is made or sorted.
        """
        count = sum(part.numel() for part in parts)
        if count == 0:
            raise QuantError("spread: no values")
        mean = sum(float(piece.double().sum()) for piece in _pieces(parts)) / count
        squares = sum(float((piece.double() - mean).square().sum()) for piece in _pieces(parts))
        return cls(
            variance=squares / count,
            absmax=max(float(piece.abs().max()) for piece in _pieces(parts)),
            absp99=_magnitude_of_rank(parts, math.ceil(0.99 * count)),
        )

    @property
    def outlier_ratio(self) -> float:
        """AbsMax over AbsP99; infinite where 99 % of the values are zero."""
        return self.absmax / self.absp99 if self.absp99 > 0.0 else math.inf


def _pieces(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    for part in parts:
        for piece in torch.split(part.detach().reshape(-1), PIECE):
            if piece.numel():
                yield piece.float()


def _magnitude_of_rank(parts: Sequence[Tensor], rank: int) -> float:
    """The magnitude of that rank (from 1, ascending): float32 bits without the sign are in the values' own order.

    Sixteen bits at a time: the upper half's counts say which bucket holds it, the lower half's where in the bucket.
    """
    upper = torch.zeros(2**15, dtype=torch.int64)
    for piece in _pieces(parts):
        upper += torch.bincount((_bits(piece) >> 16).cpu(), minlength=2**15)
    bucket = int(torch.searchsorted(upper.cumsum(0), rank))
    rank -= int(upper[:bucket].sum())
    lower = torch.zeros(2**16, dtype=torch.int64)
    for piece in _pieces(parts):
        bits = _bits(piece)
        lower += torch.bincount((bits[bits >> 16 == bucket] & 0xFFFF).cpu(), minlength=2**16)
    pattern = bucket << 16 | int(torch.searchsorted(lower.cumsum(0), rank))
    return float(torch.tensor(pattern, dtype=torch.int32).view(torch.float32))


def _bits(piece: Tensor) -> Tensor:
    return piece.abs().contiguous().view(torch.int32)


@dataclass(frozen=True, slots=True)
class LayerSpread:
    """One layer's weights and, where its inputs were seen, activations."""

    layer: str
    weight: Spread
    activation: Spread | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def weights_of(module: nn.Module) -> tuple[Tensor, ...]:
    """The weights of a plain Linear or mixture of experts; QuantError for anything else."""
    if isinstance(module, nn.Linear):
        return (module.weight.detach(),)
    if isinstance(module, MixtureOfExperts) and not isinstance(module, Fp8Experts):
        return module.gate_up.detach(), module.down.detach()
    raise QuantError(f"a {type(module).__name__} has no plain weights")


def spreads(model: nn.Module, names: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[LayerSpread, ...]:
    """The named layers of a plain model; `inputs` as from `sample_inputs`."""
    return tuple(
        LayerSpread(
            layer=name,
            weight=Spread.of(*weights_of(model.get_submodule(name))),
            activation=Spread.of(inputs[name]) if name in inputs else None,
        )
        for name in names
    )


def spread_table(layers: Sequence[LayerSpread]) -> Table:
    """One row per layer."""
    columns = ["layer"] + [f"{what} {which}" for what in ("weight", "activation") for which in Spread.__slots__]
    rows = []
    for layer in layers:
        cells = [layer.layer]
        for spread in (layer.weight, layer.activation):
            values = (None,) * 3 if spread is None else (spread.variance, spread.absmax, spread.absp99)
            cells += [number(value, 4) for value in values]
        rows.append(cells)
    return table("Distribution of weights and activations", columns, rows)
