from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.catalogue import Catalogue
from model.checkpoint import read, save
from model.config import OneRecConfig
from model.errors import CheckpointError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer, extend_tokenizer
from model.semantic_ids_artifact import codebook_digest, digest, load_tokenizer, save_tokenizer


def test_artifact_round_trips_and_replaces_an_older_one(tmp_path: Path, toy_tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, Tokenizer(toy_tokenizer.codes[:3], toy_tokenizer.centroids))
    known = save_tokenizer(path, toy_tokenizer)
    loaded = load_tokenizer(path, expected_digest=known)
    assert torch.equal(loaded.codes, toy_tokenizer.codes)
    assert torch.equal(loaded.centroids, toy_tokenizer.centroids)
    assert digest(loaded) == known
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_digest_changes_with_an_id_an_order_or_a_centroid_and_not_with_storage(toy_tokenizer: Tokenizer) -> None:
    codes, centroids = toy_tokenizer.codes, toy_tokenizer.centroids
    moved, nudged = codes.clone(), centroids.clone()
    nudged[1, 2, 0] += 1e-6
    free = next(code for code in range(5) if [*codes[0, :2].tolist(), code] not in codes.tolist())
    moved[0, 2] = free
    others = [Tokenizer(moved, centroids), Tokenizer(codes.flip(0), centroids), Tokenizer(codes, nudged)]
    assert len({digest(tokenizer) for tokenizer in (toy_tokenizer, *others)}) == 4
    strided = torch.stack([codes, codes], dim=-1)[..., 0]
    assert digest(Tokenizer(strided, centroids)) == digest(toy_tokenizer)


def test_codebook_digest_stays_when_items_are_added(toy_tokenizer: Tokenizer) -> None:
    larger = extend_tokenizer(toy_tokenizer, np.zeros((2, 2), np.float32))
    assert codebook_digest(larger) == codebook_digest(toy_tokenizer)
    assert digest(larger) != digest(toy_tokenizer)


def test_checkpoint_carries_the_tokenizer_of_the_artifact(
    tmp_path: Path,
    toy_model: OneRecV2,
    toy_config: OneRecConfig,
    toy_catalogue: Catalogue,
    toy_tokenizer: Tokenizer,
) -> None:
    known = save_tokenizer(tmp_path / "tokenizer.safetensors", toy_tokenizer)
    save(tmp_path / "checkpoint", toy_model, toy_config, toy_catalogue, toy_tokenizer)
    assert digest(read(tmp_path / "checkpoint").tokenizer) == known


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "foreign", "not tensors", "other"])
def test_artifact_damaged_or_foreign_is_refused(tmp_path: Path, toy_tokenizer: Tokenizer, damage: str) -> None:
    path, expected = tmp_path / "tokenizer.safetensors", None
    save_tokenizer(path, toy_tokenizer)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-7])
    elif damage == "flipped":
        content[-2] ^= 1
        path.write_bytes(content)
    elif damage == "foreign":
        save_file({"codes": torch.zeros(1, 2)}, path)
    elif damage == "not tensors":
        path.write_bytes(b"hello")
    else:
        expected = "0" * 64
    reason = {
        "missing": "cannot be read",
        "truncated": "not a safetensors file",
        "flipped": "damaged|cod",
        "foreign": "format",
        "not tensors": "not a safetensors file",
        "other": "another tokenizer",
    }
    with pytest.raises(CheckpointError, match=reason[damage]):
        load_tokenizer(path, expected)
