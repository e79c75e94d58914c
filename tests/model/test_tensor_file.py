from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from model.errors import CheckpointError
from model.tensor_file import DTYPES, TensorFile, TensorSpec, TensorWriter


def every_dtype() -> dict[str, Tensor]:
    """A tensor of each dtype, of odd sizes, with none and without dimensions, its name in no useful order."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"blocks.{len(DTYPES) - index}.ü": torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
        for index, dtype in enumerate(DTYPES.values())
    }
    return tensors | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5), "turned": torch.rand(3, 4).t()}


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    with TensorWriter(path, {name: TensorSpec.of(value) for name, value in tensors.items()}) as writer:
        for name in sorted(tensors, reverse=True):
            writer.put(name, tensors[name])
    return path


def test_bytes_are_those_that_the_library_writes(tmp_path: Path) -> None:
    tensors = every_dtype()
    expected = save({name: value.contiguous() for name, value in tensors.items()})
    assert written(tmp_path / "x", tensors).read_bytes() == expected


def test_what_the_library_wrote_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = every_dtype()
    (tmp_path / "x").write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, {"by": "hand"}))
    file = TensorFile(tmp_path / "x")
    assert file.specs == {name: TensorSpec.of(value) for name, value in tensors.items()}
    for name, value in tensors.items():
        assert torch.equal(file.read(name).float(), value.float()), name
    with pytest.raises(CheckpointError, match="missing tensor 'y'"):
        file.read("y")


def test_what_was_read_is_a_copy(tmp_path: Path) -> None:
    file = TensorFile(written(tmp_path / "x", {"a": torch.ones(3)}))
    file.read("a").zero_()
    assert torch.equal(file.read("a"), torch.ones(3))
    assert torch.equal(load_file(tmp_path / "x")["a"], torch.ones(3))


def test_a_tensor_unannounced_twice_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    with TensorWriter(tmp_path / "x", {"a": TensorSpec(torch.float32, (2,))}) as writer:
        for name, value in (("b", torch.ones(2)), ("a", torch.ones(3)), ("a", torch.ones(2).half())):
            with pytest.raises(CheckpointError, match=repr(name)):
                writer.put(name, value)
        writer.put("a", torch.ones(2))
        with pytest.raises(CheckpointError, match="written already"):
            writer.put("a", torch.ones(2))


def test_a_tensor_that_never_came_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="'a': was announced"),
        TensorWriter(tmp_path / "x", {"a": TensorSpec(torch.float32, (2,))}),
    ):
        pass


def header(**changes: object) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        (9).to_bytes(8, "little") + b"not json!",
        (2).to_bytes(8, "little") + b"[]",
        header() + bytes(7),
        header() + bytes(9),
        header(dtype="F4") + bytes(8),
        header(shape=[3]) + bytes(8),
        header(shape=3) + bytes(8),
        header(data_offsets=[4, 12]) + bytes(12),
        header(data_offsets=[0, -8]) + bytes(8),
    ],
)
def test_what_is_no_whole_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        TensorFile(tmp_path / "x")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorFile(tmp_path / "none")
