"""The weights of a quantised model under the names of the plain one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.primitives import dequantise, spread_blocks


def stored_weights(model: nn.Module) -> Callable[[str], Tensor]:
    """A function from a plain parameter's name to its values.

    float32 where the model stores E4M3: codes times scales, made anew at every call. Everything else as it is stored.
    A parameter that the model lacks raises AttributeError.
    """

    def read(name: str) -> Tensor:
        owner, _, part = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, Fp8Linear) and part == "weight":
            return dequantise(module.weight, module.weight_scale)
        if isinstance(module, Fp8Experts) and part in ("gate_up", "down"):
            return _stack(module, part)
        found: Tensor = getattr(module, part)
        return found.detach()

    return read


def linear_shapes(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """(inner, outer) of the Linear layers that are stored in E4M3, each once; shared experts run with the routed."""
    return tuple(
        sorted(
            {
                (module.in_features, module.out_features)
                for name, module in model.named_modules()
                if isinstance(module, Fp8Linear) and ".shared." not in name
            }
        )
    )


def _stack(module: Fp8Experts, part: str) -> Tensor:
    codes: Tensor = getattr(module, f"{part}_codes")
    scale: Tensor = getattr(module, f"{part}_scale")
    block = module.block
    if block is None or tuple(scale.shape[1:]) == (codes.shape[1], 1):
        return dequantise(codes, scale)  # a scale per row
    return dequantise(codes, spread_blocks(scale, (block, block), codes.shape))
