"""How near a variant's numbers are to a reference's: the output of every part of every block, and the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.onerec import OneRecV2
from model.recommender import Recommender
from quant.errors import QuantError
from quant.primitives import sqnr_db
from quant.sampling import Positions
from quant.table import Table, number, table

PARTS = ("cross", "self_attn", "ffn")


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Of one variant against a reference, both fed the same histories and codes (teacher forcing).

    layers: SQNR in dB of the parts' outputs, errors of all that came before included; a block's own name is the
    residual stream behind it. logit_error: root mean square of the difference over the standard deviation of the
    reference's logits; logit_error_max: the largest difference, in logits; divergence: mean of
    KL(reference ‖ variant) over the levels, in nats.
    """

    name: str
    layers: dict[str, float]
    logit_error: float
    logit_error_max: float
    divergence: float


@torch.no_grad()
def fidelity(name: str, variant: Recommender, reference: Recommender, positions: Positions) -> Fidelity:
    """Run both and compare. Raises QuantError when their configurations differ."""
    if variant.config != reference.config:
        raise QuantError(f"{name}: another configuration than the reference's")
    (seen, logits), (expected, exact) = (_run(each, positions) for each in (variant, reference))
    wanted = torch.log_softmax(exact, dim=-1)
    gap = wanted - torch.log_softmax(logits, dim=-1)
    return Fidelity(
        name=name,
        layers={layer: sqnr_db(expected[layer], seen[layer]) for layer in expected},
        logit_error=float((logits - exact).square().mean().sqrt() / exact.std(correction=0)),
        logit_error_max=float((logits - exact).abs().max()),
        divergence=float((wanted.exp() * gap).sum(-1).mean()),
    )


def fidelity_table(found: list[Fidelity]) -> Table:
    """One row per variant; of the layers the lowest and the last."""
    rows = [
        (
            each.name,
            number(min(each.layers.values()), 1),
            number(list(each.layers.values())[-1], 1),
            f"{each.logit_error:.2%}",
            number(each.logit_error_max, 3),
            f"{each.divergence:.2e}",
        )
        for each in found
    ]
    columns = ("pair", "lowest layer dB", "last block dB", "logit error", "largest logit error", "KL, nats")
    return table("Nearness of the numbers", columns, rows)


def _run(recommender: Recommender, positions: Positions) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of every part and block by name, and logits [levels, B, codebook], float32."""
    model, device = recommender.model, recommender.device
    seen: dict[str, Tensor] = {}
    handles = [module.register_forward_hook(_keeper(name, seen)) for name, module in _watched(model)]
    try:
        context = recommender.context(positions.histories)
        logits = model(context, recommender.codes[positions.targets.to(device)])
    finally:
        for handle in handles:
            handle.remove()
    return seen, torch.stack(logits).float()


def _watched(model: OneRecV2) -> list[tuple[str, nn.Module]]:
    out: list[tuple[str, nn.Module]] = []
    for layer, block in enumerate(model.decoder.blocks):
        name = f"decoder.blocks.{layer}"
        out += [(f"{name}.{part}", block.get_submodule(part)) for part in PARTS]
        out.append((name, block))
    return out


def _keeper(name: str, seen: dict[str, Tensor]) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def keep(_: nn.Module, __: tuple[object, ...], output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, Tensor):
            seen[name] = value.float()

    return keep
