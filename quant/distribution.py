"""How widely weights and activations spread: what the FP8 paper reads to judge whether a model can be quantised.

arXiv 2603.11486: a traditional ranker has variances about 1e7 and magnitudes beyond 1000; OneRec-V2 has variances
below 0.1, like a language model, and so fits into eight bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.experts import MixtureOfExperts
from quant.errors import QuantError
from quant.experts import Fp8Experts
from quant.table import Table, number, table


@dataclass(frozen=True, slots=True)
class Spread:
    """variance (about the mean), largest magnitude, and the 99th percentile of the magnitudes (nearest rank)."""

    variance: float
    absmax: float
    absp99: float

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Of all values of a tensor; raises QuantError when it is empty."""
        if values.numel() == 0:
            raise QuantError("spread: no values")
        flat = values.detach().double().flatten()
        size = flat.abs()
        rank = math.ceil(0.99 * flat.numel())
        return cls(
            variance=float(flat.var(correction=0)),
            absmax=float(size.max()),
            absp99=float(size.kthvalue(rank).values),
        )


@dataclass(frozen=True, slots=True)
class LayerSpread:
    """One layer's weights and, where its inputs were seen, activations."""

    layer: str
    weight: Spread
    activation: Spread | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def weights_of(module: nn.Module) -> Tensor:
    """All weights of a plain Linear or mixture of experts as one flat tensor; QuantError for anything else."""
    if isinstance(module, nn.Linear):
        return module.weight.detach().flatten()
    if isinstance(module, MixtureOfExperts) and not isinstance(module, Fp8Experts):
        return torch.cat([module.gate_up.detach().flatten(), module.down.detach().flatten()])
    raise QuantError(f"a {type(module).__name__} has no plain weights")


def spreads(model: nn.Module, names: Sequence[str], inputs: Mapping[str, Tensor]) -> tuple[LayerSpread, ...]:
    """The named layers of a plain model; `inputs` as from `sample_inputs`."""
    return tuple(
        LayerSpread(
            layer=name,
            weight=Spread.of(weights_of(model.get_submodule(name))),
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
