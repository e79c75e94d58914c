"""A tokenizer as a file of its own, and the digest that ties a checkpoint to it.

A checkpoint holds its tokenizer. The artifact is for those who make ids for new items without a model, and for telling
whether two checkpoints speak the same codes: `digest` depends on content only, not on how it is stored.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from model.errors import CheckpointError, ModelError
from model.semantic_ids import Tokenizer

FORMAT = "crossfade-tokenizer"
FORMAT_VERSION = 1


def digest(tokenizer: Tokenizer) -> str:
    """sha256, in hex, of the shape, the centroids and every item's id, in the items' order."""
    found = hashlib.sha256(codebook_digest(tokenizer).encode())
    found.update(struct.pack("<2q", *tokenizer.codes.shape))
    found.update(tokenizer.codes.to("cpu", torch.int32).contiguous().numpy().astype("<i4").tobytes())
    return found.hexdigest()


def codebook_digest(tokenizer: Tokenizer) -> str:
    """sha256, in hex, of the centroids alone: it stays when new items are added, and changes with a refit."""
    found = hashlib.sha256(struct.pack("<3q", *tokenizer.centroids.shape))
    found.update(tokenizer.centroids.to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes())
    return found.hexdigest()


def save_tokenizer(path: Path | str, tokenizer: Tokenizer) -> str:
    """Write one safetensors file, beside and then in place of an older one; returns the digest."""
    target, known = Path(path), digest(tokenizer)
    tensors = {"codes": tokenizer.codes.to(torch.int32).contiguous(), "centroids": tokenizer.centroids.contiguous()}
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "digest": known}
    part = target.with_name(target.name + ".part")
    part.write_bytes(save_tensors(tensors, metadata))
    part.replace(target)
    return known


def load_tokenizer(path: Path | str, expected_digest: str | None = None) -> Tokenizer:
    """The inverse of `save_tokenizer`. Raises CheckpointError with the reason.

    expected_digest: refuse any other tokenizer, be it undamaged; a checkpoint's own is `digest(files.tokenizer)`.
    """
    source = Path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error.strerror}") from error
    try:
        tensors = load_tensors(content)
        metadata = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]]).get("__metadata__", {})
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(f"{source}: not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT or metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(f"{source}: not a tokenizer of format {FORMAT}, version {FORMAT_VERSION}")
    try:
        tokenizer = Tokenizer(tensors["codes"].to(torch.int64), tensors["centroids"])
    except (ModelError, KeyError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    found = digest(tokenizer)
    if found != metadata.get("digest"):
        raise CheckpointError(f"{source}: damaged: its digest is not the one that it carries")
    if expected_digest is not None and found != expected_digest:
        raise CheckpointError(f"{source}: another tokenizer: digest {found[:12]}…, expected {expected_digest[:12]}…")
    return tokenizer
