"""When the plain model serves instead of the engine, and that it says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from model.recommender import Recommender
from quant import engine, load
from quant.engine import on_engine
from quant.load import load_recommender, quantize_checkpoint
from quant.narrow import Narrow, narrow_of
from quant.recipes import RECIPES


def test_a_model_that_the_engine_cannot_run_is_served_by_the_plain_one_with_a_reason(
    dense_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_recommender(dense_dir)
    with caplog.at_level(logging.WARNING):
        assert on_engine(plain, dense_dir) is plain
    assert f"{dense_dir} is served by the plain model, not by the engine: cpu is no CUDA device" in caplog.text
    monkeypatch.setattr(engine, "unfit_device", lambda _: ())
    with caplog.at_level(logging.WARNING):
        assert on_engine(plain, dense_dir) is plain
    assert "codebook_size 16" in caplog.text
    plain.beam_width = 2000
    with caplog.at_level(logging.WARNING):
        assert on_engine(plain, dense_dir) is plain
    assert "beam_width is 2000" in caplog.text


def test_the_engine_is_asked_on_a_cuda_device_only(dense_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Recommender] = []

    def note(plain: Recommender, _folder: Path) -> Recommender:
        asked.append(plain)
        return plain

    monkeypatch.setattr(load, "on_engine", note)
    load_recommender(dense_dir)
    assert asked == []
    plain = load_recommender(dense_dir)
    monkeypatch.setattr(Recommender, "load", lambda *_: plain)  # this machine has no such device
    load_recommender(dense_dir, "cuda", engine=False)
    assert asked == []
    assert load_recommender(dense_dir, "cuda") is plain
    assert asked == [plain]


@pytest.mark.parametrize(("recipe", "narrow"), [("e4m3", False), ("e4m3-rows", False), ("e4m3-engine", True)])
def test_what_else_is_in_e4m3_is_what_the_recipe_says(
    dense_dir: Path, experts_dir: Path, tmp_path: Path, recipe: str, narrow: bool
) -> None:
    for folder, experts in ((dense_dir, False), (experts_dir, True)):
        quantised = tmp_path / folder.name
        quantize_checkpoint(folder, quantised, RECIPES[recipe])
        assert narrow_of(load_recommender(quantised).model) == Narrow(narrow, narrow, narrow and experts)
