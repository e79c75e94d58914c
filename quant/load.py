"""Quantised checkpoints: made from plain ones, and loaded like plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointFiles, build_model, require_shapes
from model.checkpoint_folder import WEIGHTS
from model.checkpoint_stream import CheckpointSource, new_checkpoint, open_checkpoint
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.recommender import DEFAULT_BEAM_WIDTH, Recommender
from model.tensor_file import TensorSpec
from quant.blockwise import Blockwise
from quant.convert import Progress, hollow, quantise_layer, selected
from quant.engine import on_engine
from quant.errors import DeviceError, QuantError, RecipeError
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.primitives import E4M3, holds_nan, require_finite
from quant.recipes import Fp8Recipe
from quant.report import LayerReport, QuantizationReport, layer_report
from quant.sampling import InputSample, Positions, synthetic_histories

QUANT_METHOD = "crossfade-fp8"
CALIBRATION_SEED = 0
Observe = Callable[[nn.Module, Tensor | None, LayerReport], None]
"""(plain layer, sampled inputs [rows, K], its report)."""


def quantize_checkpoint(
    src: Path | str,
    dst: Path | str,
    recipe: Fp8Recipe,
    progress: Progress | None = None,
    histories: Sequence[Sequence[str]] | None = None,
    observe: Observe | None = None,
) -> QuantizationReport:
    """Write the quantised variant of the plain checkpoint `src` to `dst` and report on every layer.

    One decoder block is in memory at a time, so the checkpoint may be larger than memory. `histories` (item ids,
    oldest first) only serve the report: scales come from the weights alone. None: synthetic ones. `observe` is shown
    each plain layer with the sample of its inputs and its report, before the layer goes. Raises CheckpointError for a
    damaged or already quantised source, RecipeError, NonFiniteError naming the layer, QuantError when `dst` is `src` or
    when the histories hold no item.
    """
    if Path(src).resolve() == Path(dst).resolve():
        raise QuantError(f"{dst}: the quantised checkpoint must not replace its source")
    source = open_checkpoint(src)
    if source.about.quantization is not None:
        raise CheckpointError(f"{src}: is quantised already; quantise the plain checkpoint that it came from")
    told = f"{'synthetic' if histories is None else 'given'} histories"
    if histories is None:
        histories = synthetic_histories(source.about.catalogue, CALIBRATION_SEED)
    positions = Positions.of([source.about.catalogue.indices(history) for history in histories])
    plain = Blockwise(source)
    layers = selected(plain.model, recipe)
    specs = quantised_specs(source, recipe, list(layers))
    quantization = {"quant_method": QUANT_METHOD, "recipe": recipe.to_dict(), "modules": list(layers)}
    reports: dict[str, LayerReport] = {}
    with (
        new_checkpoint(dst, replace(source.about, quantization=quantization), specs) as target,
        InputSample(plain.model, layers) as sample,
    ):
        for prefix in plain.run(positions, source.about.tokenizer.codes):
            for name in [name for name in layers if name.startswith(prefix) and name not in reports]:
                layer, inputs = layers[name], sample.rows.get(name)
                twin = quantise_layer(name, layer, recipe)
                if inputs is not None:
                    require_finite(inputs, f"{name} (input)")
                reports[name] = layer_report(name, layer, twin, inputs)
                if observe is not None:
                    observe(layer, inputs, reports[name])
                sample.rows.pop(name, None)  # not before: the report, too, runs the layer
                for key, value in own_tensors(name, layer, twin).items():
                    target.put(key, value)
                if progress is not None:
                    progress(len(reports), len(layers), name)
        for key in specs.keys() & source.tensors.specs.keys():
            if specs[key] == source.tensors.specs[key]:
                target.put(key, source.tensors.read(key))
    before, after = (sum(spec.nbytes for spec in found.values()) for found in (source.tensors.specs, specs))
    told = f"{len(histories)} {told}"
    return QuantizationReport(recipe.name, tuple(reports[name] for name in layers), before, after, told, target.digest)


def quantised_specs(source: CheckpointSource, recipe: Fp8Recipe, names: Sequence[str]) -> dict[str, TensorSpec]:
    """What the quantised checkpoint will hold; whatever is not quantised stays as it is stored."""
    with torch.device("meta"):
        model = OneRecV2(source.about.config)
    hollow(model, recipe, names)
    stored = source.tensors.specs
    return {
        name: stored[name] if name in stored and value.dtype is not E4M3 else TensorSpec.of(value)
        for name, value in model.state_dict().items()
    }


def load_recommender(
    directory: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    beam_width: int = DEFAULT_BEAM_WIDTH,
    *,
    engine: bool = True,
) -> Recommender:
    """A recommender from any checkpoint, plain or quantised; `dtype` is that of everything that is not E4M3.

    On a CUDA device the engine answers, where it can run the model, see `quant.engine.on_engine`; `engine` False: the
    plain model does everywhere. Raises CheckpointError for a damaged or foreign checkpoint, DeviceError for a GPU below
    the recipe's minimum.
    """
    place = torch.device(device)

    def builder(files: CheckpointFiles) -> OneRecV2:
        return build_model(files) if files.quantization is None else build_quantised(files, place)

    recommender = Recommender.load(directory, place, dtype, beam_width, builder)
    if engine and place.type == "cuda":
        recommender = on_engine(recommender, Path(directory))
    for layer in recommender.model.modules():
        if isinstance(layer, Fp8Linear | Fp8Experts):
            layer.prepare(recommender.model.bos)
    return recommender


def build_quantised(files: CheckpointFiles, device: torch.device) -> OneRecV2:
    """Fill a quantised model from a checkpoint's tensors, on the CPU; `device` is only checked against the recipe."""
    recipe, names = _quantization(files)
    require_capability(recipe, device)
    with torch.device("meta"):
        model = OneRecV2(files.config)
    try:
        hollow(model, recipe, names)
    except RecipeError as error:
        raise CheckpointError(f"quantization_config: {error}") from error
    _check_tensors(model, files.tensors)
    model.load_state_dict(files.tensors, assign=True)
    return model.eval()


def require_capability(recipe: Fp8Recipe, device: torch.device) -> None:
    """Raise DeviceError when `device` is a GPU below the recipe's minimum; a CPU computes the reference."""
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise DeviceError(f"{recipe.name}: {device} is asked for, and torch finds no CUDA device")
    found = torch.cuda.get_device_capability(device)
    if found < recipe.min_capability:
        wanted = ".".join(map(str, recipe.min_capability))
        raise DeviceError(
            f"{recipe.name} needs a GPU of compute capability {wanted} or more; {torch.cuda.get_device_name(device)} "
            f"has {found[0]}.{found[1]}"
        )


def _quantization(files: CheckpointFiles) -> tuple[Fp8Recipe, list[str]]:
    raw: Mapping[str, Any] | None = files.quantization
    if not isinstance(raw, dict) or raw.get("quant_method") != QUANT_METHOD:
        raise CheckpointError(f"quantization_config: not of the method {QUANT_METHOD}")
    names, recipe = raw.get("modules"), raw.get("recipe")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError("quantization_config: modules must list the names of the quantised layers")
    if not isinstance(recipe, dict):
        raise CheckpointError("quantization_config: recipe is missing")
    try:
        return Fp8Recipe.from_dict(recipe), names
    except QuantError as error:
        raise CheckpointError(f"quantization_config: {error}") from error


def _check_tensors(model: OneRecV2, found: Mapping[str, Tensor]) -> None:
    """Names, shapes and the dtypes of codes; scales must be positive and finite, for one bad scale is a silent one."""
    require_shapes(model, {name: tuple(tensor.shape) for name, tensor in found.items()})
    for name, wanted in model.state_dict().items():
        tensor = found[name]
        if wanted.dtype is E4M3 and tensor.dtype is not E4M3:
            raise CheckpointError(f"{WEIGHTS}: {name!r} is {tensor.dtype}, expected {E4M3}")
        if name.endswith("_scale"):
            _check_scale(name, tensor)
            continue
        finite = not holds_nan(tensor) if tensor.dtype is E4M3 else bool(torch.isfinite(tensor).all())
        if not finite:
            raise CheckpointError(f"{WEIGHTS}: {name!r} holds NaN or infinity")


def _check_scale(name: str, scale: Tensor) -> None:
    if scale.dtype is not torch.float32:
        raise CheckpointError(f"{WEIGHTS}: {name!r} is {scale.dtype}, expected torch.float32")
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bool(bad.any()):
        raise CheckpointError(f"{WEIGHTS}: {name!r} has {int(bad.sum())} scales that are not positive numbers")


def own_tensors(name: str, plain: nn.Module, twin: nn.Module) -> dict[str, Tensor]:
    """The tensors that only the quantised twin of the layer has; what both have stays as it was stored."""
    before, after = plain.state_dict(prefix=f"{name}."), twin.state_dict(prefix=f"{name}.")
    return {key: value for key, value in after.items() if key not in before or value.dtype is E4M3}
