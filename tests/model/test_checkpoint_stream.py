from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.catalogue import Catalogue
from model.checkpoint import FILES, SUMS, read, save
from model.checkpoint_stream import CheckpointSource, new_checkpoint, open_checkpoint
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer


@pytest.fixture
def folder(tmp_path: Path, toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer) -> Path:
    save(tmp_path / "whole", toy_model, toy_model.config, toy_catalogue, toy_tokenizer, extra={"seed": 1})
    return tmp_path / "whole"


def copied(source: CheckpointSource, target: Path) -> str:
    with new_checkpoint(target, source.about, source.tensors.specs) as writer:
        for name in source.tensors.specs:
            writer.put(name, source.tensors.read(name))
    return writer.digest


def test_a_source_says_what_reading_everything_says(folder: Path) -> None:
    source, files = open_checkpoint(folder), read(folder)
    assert (source.about.config, source.about.extra, source.digest) == (files.config, files.extra, files.digest)
    assert source.about.catalogue.ids == files.catalogue.ids
    assert source.tensors.specs.keys() == files.tensors.keys()
    assert all(torch.equal(source.tensors.read(name), value) for name, value in files.tensors.items())


def test_a_copy_tensor_by_tensor_has_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert copied(open_checkpoint(folder), tmp_path / "copy") == read(folder).digest
    for name in (*FILES, SUMS):
        assert (folder / name).read_bytes() == (tmp_path / "copy" / name).read_bytes(), name


def test_an_older_checkpoint_is_replaced_and_anything_else_is_not(folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(folder)
    for _ in range(2):
        copied(source, tmp_path / "copy")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="refusing to replace"):
        copied(source, tmp_path / "letters")


def test_an_error_halfway_leaves_the_older_one_and_no_rest(folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(folder)
    before = copied(source, tmp_path / "copy")
    with (
        pytest.raises(CheckpointError, match="never written"),
        new_checkpoint(tmp_path / "copy", source.about, source.tensors.specs),
    ):
        pass
    assert read(tmp_path / "copy").digest == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "whole"]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_without_reading_at_once(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(folder)
