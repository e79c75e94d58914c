"""The folder of a checkpoint: its files, their sums, what the small ones say, and how a new one takes its place."""

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
from torch import Tensor

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.errors import CheckpointError, ModelError
from model.semantic_ids import Tokenizer

FORMAT = "crossfade-onerec"
FORMAT_VERSION = 1
SUMS = "SHA256SUMS"
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "catalogue.json", "tokenizer.safetensors")
PIECE = 2**20  # bytes read at a time while a sum is made


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """Everything of a checkpoint but its weights."""

    config: OneRecConfig
    catalogue: Catalogue
    tokenizer: Tokenizer
    quantization: dict[str, Any] | None
    extra: dict[str, Any]


def described(folder: Path, contents: Mapping[str, bytes]) -> Description:
    """From the bytes of the small files. Raises CheckpointError with the reason."""
    header = _header(contents["config.json"], folder)
    try:
        config = OneRecConfig.from_dict(header["model"])
        catalogue = Catalogue.from_json(contents["catalogue.json"].decode())
        sids = tensors_of(contents["tokenizer.safetensors"], folder / "tokenizer.safetensors")
        tokenizer = Tokenizer(sids["codes"].to(torch.int64), sids["centroids"])
    except CheckpointError:
        raise
    except (ModelError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if tokenizer.n_items != len(catalogue):
        raise CheckpointError(f"{folder}: {tokenizer.n_items} semantic ids for {len(catalogue)} items")
    if (tokenizer.levels, tokenizer.codebook_size) != (config.levels, config.codebook_size):
        raise CheckpointError(f"{folder}: the tokenizer's levels and codes are not those of the model")
    return Description(config, catalogue, tokenizer, header.get("quantization_config"), header.get("extra", {}))


def small_files(about: Description) -> dict[str, bytes]:
    """The inverse of `described`."""
    header: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": about.config.to_dict()}
    if about.quantization is not None:
        header["quantization_config"] = about.quantization
    header["extra"] = about.extra
    codes, centroids = about.tokenizer.codes.to(torch.int32), about.tokenizer.centroids
    return {
        "config.json": (json.dumps(header, indent=2, sort_keys=True) + "\n").encode(),
        "catalogue.json": (about.catalogue.to_json() + "\n").encode(),
        "tokenizer.safetensors": save_tensors({"codes": codes.contiguous(), "centroids": centroids.contiguous()}),
    }


def tensors_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a whole safetensors file in memory; CheckpointError naming `path` when it is none."""
    try:
        return load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def sums_of(folder: Path) -> tuple[dict[str, str], str]:
    """The sha256 that the folder promises of each of FILES, and the checkpoint's digest. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    try:
        sums = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder}: no readable {SUMS}; this is not a checkpoint of {FORMAT}") from error
    named = {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines())}
    for name in FILES:
        if name not in named:
            raise CheckpointError(f"{folder}: {SUMS} does not list {name}")
    return named, hashlib.sha256(sums.encode()).hexdigest()


def verified(folder: Path, name: str, wanted: str) -> bytes:
    """The content of one file whose sha256 is `wanted`. Raises CheckpointError."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: {name} cannot be read: {error.strerror}") from error
    _require_sum(hashlib.sha256(content).hexdigest(), wanted, folder, name)
    return content


def verify(folder: Path, name: str, wanted: str) -> None:
    """The same without keeping the content: for files larger than memory."""
    try:
        found = sha256_of(folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder}: {name} cannot be read: {error.strerror}") from error
    _require_sum(found, wanted, folder, name)


def sha256_of(path: Path) -> str:
    """Of a file, read piece by piece."""
    digest = hashlib.sha256()
    piece = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(memoryview(piece)[:count])
    return digest.hexdigest()


def begin(target: Path) -> Path:
    """An empty folder beside `target`, to be filled and then given to `finish`.

    Raises CheckpointError when `target` holds anything but a checkpoint.
    """
    if target.exists() and not (target / SUMS).is_file() and any(target.iterdir()):
        raise CheckpointError(f"{target}: exists and is not a checkpoint; refusing to replace it")
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def finish(part: Path, target: Path, digests: Mapping[str, str]) -> str:
    """Write the sums of all FILES, and put the folder in `target`'s place; returns the checkpoint's digest."""
    sums = "".join(f"{digests[name]}  {name}\n" for name in FILES)
    (part / SUMS).write_text(sums, encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    return hashlib.sha256(sums.encode()).hexdigest()


def _require_sum(found: str, wanted: str, folder: Path, name: str) -> None:
    if found != wanted:
        raise CheckpointError(f"{folder}: {name} is damaged: its sha256 is not the one in {SUMS}")


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
