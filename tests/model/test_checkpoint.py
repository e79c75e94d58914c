from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.catalogue import Catalogue
from model.checkpoint import FILES, SUMS, build_model, load, read, save, write
from model.config import OneRecConfig
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer


@pytest.fixture
def folder(tmp_path: Path, toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer) -> Path:
    target = tmp_path / "checkpoint"
    save(target, toy_model, toy_model.config, toy_catalogue, toy_tokenizer, extra={"seed": 1})
    return target


def _sign(folder: Path) -> None:
    """Make the digests fit what is there now: the content itself must then be judged."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _edit_config(folder: Path, **changes: object) -> None:
    header = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(header | changes))
    _sign(folder)


def test_checkpoint_round_trips_everything(folder: Path, toy_model: OneRecV2, toy_tokenizer: Tokenizer) -> None:
    loaded = load(folder)
    again = loaded.model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in toy_model.state_dict().items())
    assert torch.equal(loaded.files.tokenizer.codes, toy_tokenizer.codes)
    assert loaded.files.config == toy_model.config
    assert loaded.files.catalogue.ids[3] == "i3"
    assert loaded.files.extra == {"seed": 1}
    assert loaded.files.quantization is None


def test_checkpoint_with_pathways_round_trips_and_is_not_taken_for_one_without(
    tmp_path: Path,
    make_model: Callable[..., OneRecV2],
    pathway_config: OneRecConfig,
    toy_catalogue: Catalogue,
    toy_tokenizer: Tokenizer,
) -> None:
    model = make_model(pathway_config)
    save(tmp_path / "c", model, pathway_config, toy_catalogue, toy_tokenizer)
    loaded = load(tmp_path / "c")
    assert loaded.files.config == pathway_config
    again = loaded.model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    _edit_config(tmp_path / "c", model=pathway_config.to_dict() | {"positive_len": 0})
    with pytest.raises(CheckpointError, match=r"unknown tensor 'context\.positive"):
        load(tmp_path / "c")


def test_checkpoint_in_bfloat16_is_cast_and_deterministic(
    tmp_path: Path, toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer
) -> None:
    digests = [
        save(tmp_path / name, toy_model, toy_model.config, toy_catalogue, toy_tokenizer, dtype=torch.bfloat16)
        for name in ("a", "b")
    ]
    assert digests[0] == digests[1] == read(tmp_path / "a").digest
    assert {tensor.dtype for tensor in read(tmp_path / "a").tensors.values()} == {torch.bfloat16}


def test_checkpoint_quantised_is_read_raw_but_not_built_as_a_plain_model(
    tmp_path: Path, toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer
) -> None:
    tensors = {"heads.0.weight_fp8": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    recipe = {"format": "e4m3"}
    write(tmp_path / "q", tensors, toy_model.config, toy_catalogue, toy_tokenizer, quantization=recipe)
    files = read(tmp_path / "q")
    assert files.quantization == recipe
    assert files.tensors["heads.0.weight_fp8"].dtype == torch.float8_e4m3fn
    with pytest.raises(CheckpointError, match="quantised"):
        build_model(files)


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_flipped_byte_anywhere_is_damage(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is damaged"):
        read(folder)


@pytest.mark.parametrize("name", FILES)
def test_checkpoint_truncated_or_missing_file_is_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is damaged"):
        read(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} cannot be read"):
        read(folder)


def test_checkpoint_truncated_and_resigned_weights_are_still_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    _sign(folder)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "pytorch"}, "not of format"),
        ({"format_version": 2}, "format_version 2"),
        ({"model": None}, "no model configuration"),
        ({"model": {"d_model": 16}}, "missing"),
        ({"quantization_config": 8}, "quantization_config"),
    ],
)
def test_checkpoint_foreign_header_is_refused(folder: Path, changes: dict[str, object], reason: str) -> None:
    _edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=reason):
        read(folder)


def test_checkpoint_model_of_another_shape_is_refused(folder: Path) -> None:
    model = json.loads((folder / "config.json").read_text())["model"]
    _edit_config(folder, model=model | {"ffn_dim": 32})
    with pytest.raises(CheckpointError, match=r"ffn.*has shape"):
        load(folder)
    _edit_config(folder, model=model | {"n_layers": 4})
    with pytest.raises(CheckpointError, match=r"missing tensor 'decoder\.blocks\.3"):
        load(folder)
    _edit_config(folder, model=model | {"codebook_size": 6})
    with pytest.raises(CheckpointError, match="tokenizer"):
        load(folder)


def test_checkpoint_unknown_tensor_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"surprise": torch.zeros(1)}, folder / "model.safetensors")
    _sign(folder)
    with pytest.raises(CheckpointError, match="unknown tensor 'surprise'"):
        load(folder)


def test_checkpoint_of_another_catalogue_size_is_refused(folder: Path) -> None:
    (folder / "catalogue.json").write_text(Catalogue(("a",), ("",), ((),)).to_json())
    _sign(folder)
    with pytest.raises(CheckpointError, match="20 semantic ids for 1 items"):
        read(folder)


def test_checkpoint_missing_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read(tmp_path / "none")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read(tmp_path)


def test_save_replaces_a_checkpoint_but_nothing_else(
    tmp_path: Path, folder: Path, toy_model: OneRecV2, toy_catalogue: Catalogue, toy_tokenizer: Tokenizer
) -> None:
    save(folder, toy_model, toy_model.config, toy_catalogue, toy_tokenizer, extra={"seed": 2})
    assert read(folder).extra == {"seed": 2}
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(CheckpointError, match="refusing to replace"):
        save(other, toy_model, toy_model.config, toy_catalogue, toy_tokenizer)
    assert (other / "cat.jpg").exists()
