from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import PRESETS, OneRecConfig
from model.data import Interactions, Row, from_rows
from model.errors import ModelError
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from model.split import leave_one_out
from model.train import TrainOptions, TrainResult
from model.train_options import PRESET_OPTIONS
from quant.recipes import recipe_named
from serving.pipeline import _trained, prepare, quantise_and_analyse

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


def test_a_preset_that_is_not_trained_here_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("user_id,item_id,timestamp\n" + "".join(f"u{n % 4},i{n % 7},{n}\n" for n in range(40)))
    with pytest.raises(ModelError, match=r"^preset: no '8B' that is trained here; there are tiny, small$"):
        prepare(tmp_path, 0, print, lambda *_: None, data_path=table, preset="8B")
    assert not (tmp_path / "checkpoints").exists()


def test_training_keeps_its_state_until_the_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, folder = leave_one_out(drawn("i")), tmp_path / "run" / "bf16"
    number = torch.arange(split.n_items)
    tokenizer = Tokenizer(torch.stack([number // 8, number % 8, number % 8], dim=1), torch.zeros(3, 64, 2))
    asked: list[Any] = []

    def interrupted_once(*args: Any, state_path: Path) -> TrainResult:
        asked.append((args[1], args[3]))
        if not state_path.exists():
            state_path.write_bytes(b"half")
            raise KeyboardInterrupt
        model = OneRecV2(PRESETS["small"])
        return TrainResult(model, tokenizer, None, (2.0, 1.0), 3.0, (2.0, 1.0), ())  # type: ignore[arg-type]

    monkeypatch.setattr("model.train.train", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        _trained(folder, split, "small", 0, print, lambda *_: None)
    assert not folder.exists()
    _trained(folder, split, "small", 0, print, lambda *_: None)
    assert asked == [(PRESETS["small"], PRESET_OPTIONS["small"])] * 2
    assert isinstance(asked[0][1], TrainOptions)
    assert (folder / "SHA256SUMS").is_file()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bf16", "losses.png"]
