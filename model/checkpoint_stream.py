"""Checkpoints larger than memory: opened without reading the weights, written one tensor at a time.

The same folders with the same bytes as `model.checkpoint` reads and writes at once.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.checkpoint_folder import (
    FILES,
    WEIGHTS,
    Description,
    begin,
    described,
    finish,
    sha256_of,
    small_files,
    sums_of,
    verified,
    verify,
)
from model.tensor_file import TensorFile, TensorSpec, TensorWriter


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointSource:
    """A verified checkpoint whose tensors are still on disk; `digest` is the sha256 of its SHA256SUMS."""

    about: Description
    tensors: TensorFile
    digest: str


def open_checkpoint(directory: Path | str) -> CheckpointSource:
    """Verify a checkpoint, reading its weights once piece by piece. Raises CheckpointError with the reason."""
    folder = Path(directory)
    sums, digest = sums_of(folder)
    contents = {name: verified(folder, name, sums[name]) for name in FILES if name != WEIGHTS}
    about = described(folder, contents)
    verify(folder, WEIGHTS, sums[WEIGHTS])
    return CheckpointSource(about, TensorFile(folder / WEIGHTS), digest)


class CheckpointTarget:
    """A checkpoint being written; `digest` is known once it is complete."""

    def __init__(self, weights: TensorWriter) -> None:
        self._weights = weights
        self.digest = ""

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one of the announced tensors, in any order."""
        self._weights.put(name, tensor)


@contextmanager
def new_checkpoint(
    directory: Path | str, about: Description, specs: Mapping[str, TensorSpec]
) -> Iterator[CheckpointTarget]:
    """A checkpoint of the announced tensors, beside and at the end in place of an older one; an error leaves none.

    Tensors come in any order, so the sum of the weights is made at the end, in one more reading of the file. Raises
    CheckpointError when `directory` holds anything but a checkpoint, or when a tensor is missing.
    """
    folder = Path(directory)
    part = begin(folder)
    try:
        digests = {}
        for name, content in small_files(about).items():
            (part / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
        with TensorWriter(part / WEIGHTS, specs) as weights:
            target = CheckpointTarget(weights)
            yield target
        digests[WEIGHTS] = sha256_of(part / WEIGHTS)
        target.digest = finish(part, folder, digests)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
