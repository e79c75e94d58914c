"""What besides matrices and the rows that they multiply is in E4M3."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quant.cross_attention import Fp8CrossAttention
from quant.experts import Fp8Experts
from quant.self_attention import Fp8SelfAttention


@dataclass(frozen=True, slots=True)
class Narrow:
    """context: its keys and values. own: queries, keys and values of generated tokens. results: what experts give."""

    context: bool = True
    own: bool = True
    results: bool = True


ALL_NARROW = Narrow()


def narrow_of(model: nn.Module) -> Narrow:
    """What the recipe that quantised the model said."""
    modules = list(model.modules())
    return Narrow(
        context=any(isinstance(module, Fp8CrossAttention) for module in modules),
        own=any(isinstance(module, Fp8SelfAttention) for module in modules),
        results=any(isinstance(module, Fp8Experts) and module.narrow_results for module in modules),
    )
