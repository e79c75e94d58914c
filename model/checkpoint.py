"""Checkpoints: one folder of safetensors and JSON with the sha256 of every file; never pickle.

    config.json            format, model configuration, quantization_config, whatever the trainer adds
    model.safetensors      weights
    catalogue.json         item ids, titles, genres
    tokenizer.safetensors  semantic ids and centroids
    SHA256SUMS             readable by `sha256sum -c`

A quantised variant has the same layout: its tensors are named by whoever quantised it and config.json carries a
`quantization_config`. `read` hands out verified content without judging the tensors; `load` builds a plain model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.errors import CheckpointError, ModelError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer

FORMAT = "crossfade-onerec"
FORMAT_VERSION = 1
SUMS = "SHA256SUMS"
FILES = ("config.json", "model.safetensors", "catalogue.json", "tokenizer.safetensors")


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
    if target.exists() and not (target / SUMS).is_file() and any(target.iterdir()):
        raise CheckpointError(f"{target}: exists and is not a checkpoint; refusing to replace it")
    header: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": config.to_dict()}
    if quantization is not None:
        header["quantization_config"] = dict(quantization)
    header["extra"] = dict(extra or {})
    contents = {
        "config.json": (json.dumps(header, indent=2, sort_keys=True) + "\n").encode(),
        "model.safetensors": save_tensors({name: value.contiguous() for name, value in tensors.items()}),
        "catalogue.json": (catalogue.to_json() + "\n").encode(),
        "tokenizer.safetensors": save_tensors(
            {"codes": tokenizer.codes.to(torch.int32).contiguous(), "centroids": tokenizer.centroids.contiguous()}
        ),
    }
    sums = "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in FILES)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in contents.items():
        (part / name).write_bytes(content)
    (part / SUMS).write_text(sums, encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    return hashlib.sha256(sums.encode()).hexdigest()


def read(directory: Path | str) -> CheckpointFiles:
    """Verified content of a checkpoint, quantised or not. Raises CheckpointError with the reason."""
    folder = Path(directory)
    contents, digest = _verified(folder)
    header = _header(contents["config.json"], folder)
    try:
        config = OneRecConfig.from_dict(header["model"])
        catalogue = Catalogue.from_json(contents["catalogue.json"].decode())
        sids = _tensors(contents["tokenizer.safetensors"], folder / "tokenizer.safetensors")
        tokenizer = Tokenizer(sids["codes"].to(torch.int64), sids["centroids"])
    except CheckpointError:
        raise
    except (ModelError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if tokenizer.n_items != len(catalogue):
        raise CheckpointError(f"{folder}: {tokenizer.n_items} semantic ids for {len(catalogue)} items")
    if (tokenizer.levels, tokenizer.codebook_size) != (config.levels, config.codebook_size):
        raise CheckpointError(f"{folder}: the tokenizer's levels and codes are not those of the model")
    tensors = _tensors(contents["model.safetensors"], folder / "model.safetensors")
    quantization = header.get("quantization_config")
    return CheckpointFiles(config, tensors, catalogue, tokenizer, quantization, header.get("extra", {}), digest)


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
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() ^ files.tensors.keys()):
        word = "missing" if name in expected else "unknown"
        raise CheckpointError(f"model.safetensors: {word} tensor {name!r}")
    for name, shape in expected.items():
        if files.tensors[name].shape != shape:
            found = tuple(files.tensors[name].shape)
            raise CheckpointError(f"model.safetensors: {name!r} has shape {found}, expected {tuple(shape)}")
    model.load_state_dict(files.tensors, assign=True)
    return model.eval()


def _verified(folder: Path) -> tuple[dict[str, bytes], str]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    try:
        sums = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: no readable {SUMS}; this is not a checkpoint of {FORMAT}") from error
    named = {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines())}
    contents: dict[str, bytes] = {}
    for name in FILES:
        if name not in named:
            raise CheckpointError(f"{folder}: {SUMS} does not list {name}")
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder}: {name} cannot be read: {error.strerror}") from error
        if hashlib.sha256(contents[name]).hexdigest() != named[name]:
            raise CheckpointError(f"{folder}: {name} is damaged: its sha256 is not the one in {SUMS}")
    return contents, hashlib.sha256(sums.encode()).hexdigest()


def _header(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        header = json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{folder}: config.json is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: config.json is not of format {FORMAT}")
    if header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version")
        raise CheckpointError(f"{folder}: format_version {found!r}; this program reads version {FORMAT_VERSION}")
    if not isinstance(header.get("model"), dict):
        raise CheckpointError(f"{folder}: config.json has no model configuration")
    for name in ("quantization_config", "extra"):
        if not isinstance(header.get(name, {}), dict):
            raise CheckpointError(f"{folder}: config.json: {name} must be an object")
    return header


def _tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
