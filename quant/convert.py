"""From a plain model to a quantised one, module by module, by the recipe's filter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from model.decoder import CausalSelfAttention, CrossAttention
from model.experts import MixtureOfExperts
from quant.cross_attention import Fp8CrossAttention
from quant.errors import RecipeError
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.primitives import (
    E4M3,
    E4M3_MAX,
    block_scale,
    encode,
    require_finite,
    row_scale,
    spread_blocks,
    tensor_scale,
)
from quant.recipes import Fp8Recipe
from quant.self_attention import Fp8SelfAttention

Progress = Callable[[int, int, str], None]
"""(layers done, layers in all, name of the layer just done)."""


def selected(model: nn.Module, recipe: Fp8Recipe) -> dict[str, nn.Module]:
    """The modules that the recipe quantises, by fully-qualified name, outer ones before their parts.

    Raises RecipeError when there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if recipe.selects(module, name) and not isinstance(module, Fp8Experts)
    }
    if not found:
        raise RecipeError(f"{recipe.name}: its patterns match no plain layer of the model")
    return found


@torch.no_grad()
def convert(model: nn.Module, recipe: Fp8Recipe, progress: Progress | None = None) -> tuple[str, ...]:
    """Replace the selected modules of `model` in place; returns their names.

    Raises RecipeError when nothing is selected, NonFiniteError naming the layer that holds NaN or infinity.
    """
    layers = selected(model, recipe)
    for done, (name, module) in enumerate(layers.items(), start=1):
        model.set_submodule(name, quantise_layer(name, module, recipe))
        if progress is not None:
            progress(done, len(layers), name)
    narrow_attention(model, recipe)
    return tuple(layers)


def quantise_layer(name: str, module: nn.Module, recipe: Fp8Recipe) -> Fp8Linear | Fp8Experts:
    """One layer's quantised twin; raises NonFiniteError naming it, RecipeError for a kind of layer without a twin."""
    if isinstance(module, nn.Linear):
        weight = _wide(module.weight, name)
        scale = row_scale(weight) if recipe.weight == "per_channel" else tensor_scale(weight)
        scale = scale * recipe.scale_multiplier
        codes = _codes(weight / scale, recipe)
        return Fp8Linear(codes, scale, None if module.bias is None else module.bias.detach())
    if isinstance(module, MixtureOfExperts):
        stored: dict[str, Tensor] = {}
        for part, stack in (("gate_up", module.gate_up), ("down", module.down)):
            stored[f"{part}_codes"], stored[f"{part}_scale"] = _expert_stack(stack, f"{name}.{part}", recipe)
        return Fp8Experts(module, stored, recipe.tile, narrow_results=recipe.narrow_results)
    raise RecipeError(f"{name}: a {type(module).__name__} cannot be quantised")


def hollow(model: nn.Module, recipe: Fp8Recipe, names: Iterable[str]) -> None:
    """Replace the named modules by quantised ones without content, to be filled from a checkpoint.

    Raises RecipeError for a name that the model lacks or that cannot be quantised.
    """
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise RecipeError(f"modules: the model has no layer {name!r}") from None
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Fp8Linear.empty_like(module))
        elif isinstance(module, MixtureOfExperts) and not isinstance(module, Fp8Experts):
            empty = Fp8Experts.empty_like(module, recipe.tile, narrow_results=recipe.narrow_results)
            model.set_submodule(name, empty)
        else:
            raise RecipeError(f"modules: {name!r} is a {type(module).__name__} and cannot be quantised")
    narrow_attention(model, recipe)


def narrow_attention(model: nn.Module, recipe: Fp8Recipe) -> None:
    """Let attention read E4M3 where the recipe says so; nothing is stored for it."""
    for name, module in list(model.named_modules()):
        if recipe.context == "e4m3" and type(module) is CrossAttention:
            model.set_submodule(name, Fp8CrossAttention(module))
        if recipe.own_tokens == "e4m3" and type(module) is CausalSelfAttention:
            model.set_submodule(name, Fp8SelfAttention(module))


def _expert_stack(stack: Tensor, name: str, recipe: Fp8Recipe) -> tuple[Tensor, Tensor]:
    """Codes and scales of stacked experts, one expert at a time to keep the float32 copies small."""
    codes = torch.empty(stack.shape, dtype=E4M3, device=stack.device)
    scales = []
    for index in range(stack.shape[0]):
        weight = _wide(stack[index], name)
        if recipe.tile is None:
            scale = spread = row_scale(weight) * recipe.scale_multiplier
        else:
            block = (recipe.tile, recipe.tile)
            scale = block_scale(weight, block) * recipe.scale_multiplier
            spread = spread_blocks(scale, block, weight.shape)
        codes[index] = _codes(weight / spread, recipe)
        scales.append(scale)
    return codes, torch.stack(scales)


def _wide(weight: Tensor, name: str) -> Tensor:
    wide = weight.detach().float()
    require_finite(wide, name)
    return wide


def _codes(scaled: Tensor, recipe: Fp8Recipe) -> Tensor:
    if recipe.overflow == "zero":
        scaled = scaled.masked_fill(scaled.abs() > E4M3_MAX, 0.0)
    return encode(scaled)
