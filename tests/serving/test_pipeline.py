from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import OneRecConfig
from model.data import Interactions, Row, from_rows
from model.errors import ModelError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from quant.recipes import recipe_named
from serving.pipeline import quantise_and_analyse

CONFIG = OneRecConfig(16, 1, 2, kv_groups=2, context_len=6, ffn_dim=32, sid_embed_dim=4, codebook_size=8)


def drawn(items: str) -> Interactions:
    rng = np.random.default_rng(0)
    return from_rows(
        Row(f"u{user}", f"{items}{int(item)}", 1e9 + float(rng.uniform(0, 1e6)), 3.0)
        for user in range(12)
        for item in rng.choice(30, size=8, replace=False)
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    catalogue = Catalogue.of(drawn("i"))
    number = torch.arange(len(catalogue))
    codes = torch.stack([number // 8, number % 8, number % 8], dim=1)
    save(tmp_path / "bf16", OneRecV2(CONFIG), CONFIG, catalogue, Tokenizer(codes, torch.zeros(3, 8, 2)))
    return tmp_path / "bf16"


def test_an_analysis_stands_beside_a_rankers_on_the_same_data(checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target, folder = tmp_path / "fp8", tmp_path / "analysis"
    report = quantise_and_analyse(checkpoint, target, recipe_named("e4m3"), folder, drawn("i"), said.append)
    assert report.histories == "12 given histories"
    text = (folder / "analysis.md").read_text()
    assert "## bf16" in text
    assert "## traditional ranker (DLRM)" in text
    assert said[-1].endswith("analysis.md")


def test_data_of_other_items_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown item 'other"):
        quantise_and_analyse(
            checkpoint, tmp_path / "fp8", recipe_named("e4m3"), tmp_path / "analysis", drawn("other"), print
        )
    assert not (tmp_path / "fp8").exists()
