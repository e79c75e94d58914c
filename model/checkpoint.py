"""Checkpoints: one folder of safetensors and JSON with the sha256 of every file; never pickle.

    config.json            format, model configuration, quantization_config, whatever the trainer adds
    model.safetensors      weights
    catalogue.json         item ids, titles, genres
    tokenizer.safetensors  semantic ids and centroids
    SHA256SUMS             readable by `sha256sum -c`

A quantised variant has the same layout: its tensors are named by whoever quantised it and config.json carries a
`quantization_config`. `read` hands out verified content without judging the tensors; `load` builds a plain model.
`model.checkpoint_stream` does the same for checkpoints larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from model.catalogue import Catalogue
from model.checkpoint_folder import (
    FILES,
    SUMS,
    WEIGHTS,
    Description,
    begin,
    described,
    finish,
    small_files,
    sums_of,
    tensors_of,
    verified,
)
from model.config import OneRecConfig
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer

__all__ = [
    "FILES",
    "SUMS",
    "Checkpoint",
    "CheckpointFiles",
    "build_model",
    "load",
    "read",
    "require_shapes",
    "save",
    "write",
]


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointFiles:
    """The verified content of a checkpoint folder; `digest` is the sha256 of its SHA256SUMS."""

    config: OneRecConfig
    tensors: dict[str, Tensor]
    catalogue: Catalogue
    tokenizer: Tokenizer
    quantization: dict[str, Any] | None
    extra: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A plain checkpoint, ready to run."""

    model: OneRecV2
    files: CheckpointFiles


def save(
    directory: Path | str,
    model: nn.Module,
    config: OneRecConfig,
    catalogue: Catalogue,
    tokenizer: Tokenizer,
    *,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a model, its floating tensors cast to `dtype` where given; returns the digest."""
    tensors = {
        name: value.detach().to("cpu", dtype if dtype is not None and value.is_floating_point() else value.dtype)
        for name, value in model.state_dict().items()
    }
    return write(directory, tensors, config, catalogue, tokenizer, extra=extra)


def write(
    directory: Path | str,
    tensors: Mapping[str, Tensor],
    config: OneRecConfig,
    catalogue: Catalogue,
    tokenizer: Tokenizer,
    *,
    quantization: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write raw tensors as a checkpoint folder, beside and then in place of an older one; returns the digest.

    Raises CheckpointError when `directory` holds anything but a checkpoint.
    """
    target = Path(directory)
    about = Description(
        config, catalogue, tokenizer, None if quantization is None else dict(quantization), dict(extra or {})
    )
    contents = small_files(about)
    contents[WEIGHTS] = save_tensors({name: value.contiguous() for name, value in tensors.items()})
    part = begin(target)
    for name, content in contents.items():
        (part / name).write_bytes(content)
    return finish(part, target, {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})


def read(directory: Path | str) -> CheckpointFiles:
    """Verified content of a checkpoint, quantised or not. Raises CheckpointError with the reason."""
    folder = Path(directory)
    sums, digest = sums_of(folder)
    contents = {name: verified(folder, name, sums[name]) for name in FILES}
    about = described(folder, contents)
    tensors = tensors_of(contents[WEIGHTS], folder / WEIGHTS)
    return CheckpointFiles(
        about.config, tensors, about.catalogue, about.tokenizer, about.quantization, about.extra, digest
    )


def load(directory: Path | str) -> Checkpoint:
    """A plain (not quantised) model on the CPU in the dtype it was stored in. Raises CheckpointError."""
    files = read(directory)
    return Checkpoint(build_model(files), files)


def build_model(files: CheckpointFiles) -> OneRecV2:
    """Fill a model from plain tensors; raises CheckpointError on a missing, unknown or ill-shaped tensor."""
    if files.quantization is not None:
        raise CheckpointError("a quantised checkpoint needs the loader of its quantiser, not the plain one")
    with torch.device("meta"):
        model = OneRecV2(files.config)
    require_shapes(model, {name: tuple(value.shape) for name, value in files.tensors.items()})
    model.load_state_dict(files.tensors, assign=True)
    return model.eval()


def require_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError on a missing, unknown or ill-shaped tensor; the model may be on the meta device."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() ^ found.keys()):
        word = "missing" if name in expected else "unknown"
        raise CheckpointError(f"{WEIGHTS}: {word} tensor {name!r}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{WEIGHTS}: {name!r} has shape {found[name]}, expected {shape}")
