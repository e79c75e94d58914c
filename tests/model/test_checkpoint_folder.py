from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from model.catalogue import Catalogue
from model.checkpoint_folder import FILES, PIECE, SUMS, Description, begin, described, finish, sha256_of, small_files
from model.config import OneRecConfig
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer


def test_small_files_are_read_back(toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer) -> None:
    config: OneRecConfig = toy_model.config
    about = Description(config, toy_catalogue, toy_tokenizer, {"method": "x"}, {"seed": 1})
    again = described(Path("here"), small_files(about))
    assert (again.config, again.quantization, again.extra) == (config, {"method": "x"}, {"seed": 1})
    assert again.catalogue.ids == toy_catalogue.ids
    assert small_files(again) == small_files(about)


def test_the_sum_of_a_file_longer_than_a_piece_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * (PIECE // 256) + b"rest"
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_finished_folder_stands_alone_with_its_sums(tmp_path: Path) -> None:
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part" / "left by a crash").touch()
    part = begin(tmp_path / "new")
    for name in FILES:
        (part / name).touch()
    digest = finish(part, tmp_path / "new", dict.fromkeys(FILES, "0" * 64))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*FILES, SUMS}
    assert hashlib.sha256((tmp_path / "new" / SUMS).read_bytes()).hexdigest() == digest
    assert not part.exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(CheckpointError, match="refusing"):
        begin(tmp_path)
