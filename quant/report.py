"""What quantising a checkpoint did to each of its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.experts import MixtureOfExperts
from quant.errors import QuantError
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.primitives import round_rows, round_runs, sqnr_db, sqnr_db_of_parts
from quant.table import Table, number, table


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Signal-to-quantisation-noise ratios of one layer in dB: of its weights, its inputs and its outputs.

    The activation and output figures are None for a layer that no sampled history reached. `lost` is the share of
    the non-zero weights that became zero.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    weight_sqnr_db: float
    activation_sqnr_db: float | None
    output_sqnr_db: float | None
    lost: float


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """A whole checkpoint. `histories` says what the activations were sampled from."""

    recipe: str
    layers: tuple[LayerReport, ...]
    bytes_before: int
    bytes_after: int
    histories: str
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with infinite ratios as None."""
        raw = asdict(self)
        for layer in raw["layers"]:
            layer["weight_sqnr_db"] = _finite(layer["weight_sqnr_db"])
            layer["activation_sqnr_db"] = _finite(layer["activation_sqnr_db"])
            layer["output_sqnr_db"] = _finite(layer["output_sqnr_db"])
        return raw

    def table(self) -> Table:
        """One row per layer."""
        rows = [
            (
                layer.layer,
                "×".join(str(size) for size in layer.shape),
                number(layer.weight_sqnr_db, 1),
                number(layer.activation_sqnr_db, 1),
                number(layer.output_sqnr_db, 1),
                f"{layer.lost:.1%}",
            )
            for layer in self.layers
        ]
        columns = ("layer", "shape", "weight SQNR dB", "activation SQNR dB", "output SQNR dB", "weights lost")
        return table(f"Quantised by {self.recipe}; activations from {self.histories}", columns, rows)


@torch.no_grad()
def layer_report(name: str, plain: nn.Module, quantised: nn.Module, inputs: Tensor | None) -> LayerReport:
    """Compare one layer with its quantised twin on sampled inputs [rows, K] of the plain model."""
    present = gone = 0
    for before, after in _weights(plain, quantised):
        present += int(before.count_nonzero())
        gone += int(((before != 0) & (after == 0)).sum())
    activation = output = None
    if inputs is not None:
        x = inputs.float()
        rounded = _rounded(x, quantised)
        activation = sqnr_db(x, rounded)
        output = sqnr_db(plain(inputs), quantised(inputs))
    return LayerReport(
        layer=name,
        kind=type(plain).__name__,
        shape=tuple((plain.gate_up if isinstance(plain, MixtureOfExperts) else plain.get_parameter("weight")).shape),
        weight_sqnr_db=sqnr_db_of_parts(_weights(plain, quantised)),
        activation_sqnr_db=activation,
        output_sqnr_db=output,
        lost=gone / max(1, present),
    )


def _weights(plain: nn.Module, quantised: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights before and after, in float32; experts one by one, for all at once would be the memory's largest guest."""
    if isinstance(plain, nn.Linear) and isinstance(quantised, Fp8Linear):
        yield plain.weight.float(), quantised.dequantised(torch.float32)
    elif isinstance(plain, MixtureOfExperts) and isinstance(quantised, Fp8Experts):
        for part, stack in (("gate_up", plain.gate_up), ("down", plain.down)):
            for index in range(stack.shape[0]):
                yield stack[index].float(), quantised.expert(part, index, torch.float32)
    else:
        raise QuantError(f"{type(quantised).__name__} is not the quantised twin of {type(plain).__name__}")


def _rounded(x: Tensor, quantised: nn.Module) -> Tensor:
    """The inputs as the quantised layer sees them."""
    if isinstance(quantised, Fp8Experts):
        return round_runs(x, quantised.block or x.shape[-1])
    values, scale = round_rows(x)
    return values * scale


def _finite(value: float | None) -> float | None:
    return value if value is not None and value != float("inf") else None
