"""Safetensors files read and written one tensor at a time, so that a file may be larger than memory.

The layout (https://github.com/huggingface/safetensors, "Format"): the header's length as 8 bytes, little endian; the
header as JSON, padded with blanks to a multiple of 8; the tensors' bytes without a gap. Ordinary reads and writes, no
mapping: what a mapping has touched counts as the process's memory until it is gone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from model.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
"""Names in the header, in the format's own order; a file holds the tensors of the last one first."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a file says of a tensor before its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Of a tensor, which may be on the meta device."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        """Size of the content."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A file's specs by name at once, its tensors when asked for, each in memory of its own.

    Raises CheckpointError for anything that is not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.specs, self._begins = _read_header(path)

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU; CheckpointError when there is none of that name."""
        if name not in self.specs:
            raise CheckpointError(f"{self._path.name}: missing tensor {name!r}")
        spec = self.specs[name]
        content = torch.empty(spec.nbytes, dtype=torch.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._begins[name])
            done, view = 0, content.numpy().data
            while done < spec.nbytes:  # the system hands out 2 GiB at a time at most
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{self._path}: ends within {name!r}")
                done += count
        return content.view(spec.dtype).view(spec.shape)


class TensorWriter:
    """A new file whose tensors come in any order, each once; the bytes are those that safetensors itself writes.

    As a context manager it closes the file, and raises CheckpointError for a tensor that never came.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = dict(specs)
        self._begins: dict[str, int] = {}
        header, end = {}, 0
        for name in sorted(specs, key=lambda name: (-_RANKS[specs[name].dtype], name)):
            spec, self._begins[name] = specs[name], end
            end += spec.nbytes
            header[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [self._begins[name], end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        self._missing = set(specs)
        self._file = path.open("wb", buffering=0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._data + end)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; raises CheckpointError when it is unknown, another than announced, or here already."""
        if name not in self._missing:
            raise CheckpointError(f"{name!r}: not announced, or written already")
        if TensorSpec.of(tensor) != self._specs[name]:
            raise CheckpointError(f"{name!r}: is {TensorSpec.of(tensor)}, announced was {self._specs[name]}")
        view = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(self._data + self._begins[name])
        done = 0
        while done < len(view):  # the system takes 2 GiB at a time at most
            done += self._file.write(view[done:]) or 0
        self._missing.remove(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise CheckpointError(f"{min(self._missing)!r}: was announced and never written")


def _read_header(path: Path) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """Specs, and where each tensor begins in the file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise ValueError("its header has no possible length")
            raw = json.loads(file.read(length))
        raw.pop("__metadata__", None)
        specs = {name: TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in raw.items()}
        spans = {name: tuple(entry["data_offsets"]) for name, entry in raw.items()}
        end = 0
        for name in sorted(spans, key=spans.__getitem__):
            if spans[name] != (end, end + specs[name].nbytes):
                raise ValueError(f"{name!r} does not lie where it should")
            end += specs[name].nbytes
        if 8 + length + end != size:
            raise ValueError("its size is not that of its tensors")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    return specs, {name: 8 + length + span[0] for name, span in spans.items()}
