"""Quantised checkpoints: made from plain ones, and loaded like plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointFiles, build_model, read, write
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.recommender import DEFAULT_BEAM_WIDTH, Recommender
from quant.convert import Progress, hollow, quantise_layer, selected
from quant.engine import on_engine
from quant.errors import DeviceError, QuantError, RecipeError
from quant.experts import Fp8Experts
from quant.linear import Fp8Linear
from quant.recipes import Fp8Recipe
from quant.report import QuantizationReport, layer_report, stored_bytes
from quant.sampling import sample_inputs, synthetic_histories

QUANT_METHOD = "crossfade-fp8"
CALIBRATION_SEED = 0


def quantize_checkpoint(
    src: Path | str,
    dst: Path | str,
    recipe: Fp8Recipe,
    progress: Progress | None = None,
    histories: Sequence[Sequence[str]] | None = None,
) -> QuantizationReport:
    """Write the quantised variant of the plain checkpoint `src` to `dst` and report on every layer.

    `histories` (item ids, oldest first) only serve the report: scales come from the weights alone. None: synthetic
    ones. Raises CheckpointError for a damaged or already quantised source, RecipeError, NonFiniteError naming the
    layer, QuantError when `dst` is `src`.
    """
    if Path(src).resolve() == Path(dst).resolve():
        raise QuantError(f"{dst}: the quantised checkpoint must not replace its source")
    files = read(src)
    if files.quantization is not None:
        raise CheckpointError(f"{src}: is quantised already; quantise the plain checkpoint that it came from")
    recommender = Recommender(build_model(files).float(), files.catalogue, files.tokenizer)
    layers = selected(recommender.model, recipe)
    if histories is None:
        histories = synthetic_histories(files.catalogue, CALIBRATION_SEED)
        told = f"{len(histories)} synthetic histories"
    else:
        told = f"{len(histories)} given histories"
    inputs = sample_inputs(recommender, list(layers), histories)
    reports, tensors = [], dict(files.tensors)
    for done, (name, plain) in enumerate(layers.items(), start=1):
        twin = quantise_layer(name, plain, recipe)
        reports.append(layer_report(name, plain, twin, inputs.get(name)))
        _replace(tensors, name, plain, twin)
        if progress is not None:
            progress(done, len(layers), name)
    quantization = {"quant_method": QUANT_METHOD, "recipe": recipe.to_dict(), "modules": list(layers)}
    digest = write(
        dst, tensors, files.config, files.catalogue, files.tokenizer, quantization=quantization, extra=files.extra
    )
    return QuantizationReport(
        recipe.name, tuple(reports), stored_bytes(files.tensors), stored_bytes(tensors), told, digest
    )


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
    _check_tensors(model.state_dict(), files.tensors)
    model.load_state_dict(files.tensors, assign=True)
    return model.eval()


def require_capability(recipe: Fp8Recipe, device: torch.device) -> None:
    """Raise DeviceError when `device` is a GPU below the recipe's minimum; a CPU computes the reference."""
    if device.type != "cuda":
        return
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


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Names, shapes and the dtypes of codes; scales must be positive and finite, for one bad scale is a silent one."""
    for name in sorted(expected.keys() ^ found.keys()):
        word = "missing" if name in expected else "unknown"
        raise CheckpointError(f"model.safetensors: {word} tensor {name!r}")
    for name, wanted in expected.items():
        tensor = found[name]
        if tensor.shape != wanted.shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
            raise CheckpointError(f"model.safetensors: {name!r} has shape {shapes}")
        if wanted.dtype is torch.float8_e4m3fn and tensor.dtype is not wanted.dtype:
            raise CheckpointError(f"model.safetensors: {name!r} is {tensor.dtype}, expected {wanted.dtype}")
        if name.endswith("_scale"):
            _check_scale(name, tensor)
        elif not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"model.safetensors: {name!r} holds NaN or infinity")


def _check_scale(name: str, scale: Tensor) -> None:
    if scale.dtype is not torch.float32:
        raise CheckpointError(f"model.safetensors: {name!r} is {scale.dtype}, expected torch.float32")
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bool(bad.any()):
        raise CheckpointError(f"model.safetensors: {name!r} has {int(bad.sum())} scales that are not positive numbers")


def _replace(tensors: dict[str, Tensor], name: str, plain: nn.Module, twin: nn.Module) -> None:
    """Exchange the plain layer's own tensors for its twin's; what they share stays as it was stored."""
    before, after = plain.state_dict(prefix=f"{name}."), twin.state_dict(prefix=f"{name}.")
    for gone in before.keys() - after.keys():
        del tensors[gone]
    fresh = {key for key, value in after.items() if key not in before or value.dtype is torch.float8_e4m3fn}
    tensors.update({key: after[key] for key in fresh})
