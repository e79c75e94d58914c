"""When the plain model serves instead of the engine, and that it says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from model.recommender import Recommender
from quant import engine, load
from quant.engine import has_narrow_context, has_narrow_results, on_engine
from quant.load import load_recommender, quantize_checkpoint
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
def test_the_context_is_in_the_format_that_the_recipe_says(
    dense_dir: Path, tmp_path: Path, recipe: str, narrow: bool
) -> None:
    quantize_checkpoint(dense_dir, tmp_path / "fp8", RECIPES[recipe])
    assert has_narrow_context(load_recommender(tmp_path / "fp8").model) is narrow


@pytest.mark.parametrize(("recipe", "narrow"), [("e4m3", False), ("e4m3-rows", False), ("e4m3-engine", True)])
def test_what_experts_give_is_in_the_format_that_the_recipe_says(
    experts_dir: Path, tmp_path: Path, recipe: str, narrow: bool
) -> None:
    quantize_checkpoint(experts_dir, tmp_path / "fp8", RECIPES[recipe])
    assert has_narrow_results(load_recommender(tmp_path / "fp8").model) is narrow
