"""`crossfade recommend` hands all signals of a user to the model, and says where a checkpoint does not read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import OneRecConfig
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.signals import UserSignals
from serving.cli import app
from tests.model.conftest import PATHWAYS, TOY


def _checkpoint(folder: Path, config: OneRecConfig) -> Path:
    torch.manual_seed(0)
    model = OneRecV2(config)
    for name, parameter in model.named_parameters():
        if name.startswith("context."):
            torch.nn.init.normal_(parameter)
    names = tuple(f"i{item}" for item in range(20))
    codes = torch.cartesian_prod(*[torch.arange(5)] * 3)[torch.randperm(125)[:20]]
    save(folder, model, config, Catalogue(names, names, ((),) * 20), Tokenizer(codes, torch.zeros(3, 5, 2)))
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("told") / "c", PATHWAYS)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["recommend", *map(str, arguments), "--json", "--k", "4"])


def test_recommend_answers_as_the_model_does_with_the_same_signals(told: Path) -> None:
    done = _run(told, "i1", "i2", "--liked", "i1", "--liked", "i2", "--profile", "gender=F", "--profile", "a=b=c")
    assert done.exit_code == 0, done.output
    signals = UserSignals(["i1", "i2"], ["i1", "i2"], {"gender": "F", "a": "b=c"})
    (expected,) = Recommender.load(told).recommend([signals], 4)
    assert json.loads(done.stdout) == [{"item_id": item.item_id, "score": item.score} for item in expected]
    assert done.stderr == ""
    assert _run(told, "i1", "i2").stdout != done.stdout


def test_recommend_says_when_a_checkpoint_does_not_read_a_signal(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path / "plain", TOY)
    done = _run(folder, "i1", "--liked", "i1", "--profile", "gender=F")
    assert done.exit_code == 0
    assert done.stdout == _run(folder, "i1").stdout
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["--liked", "--profile"]


@pytest.mark.parametrize("pair", ["gender", "=F", "gender="])
def test_recommend_with_half_a_profile_is_refused(told: Path, pair: str) -> None:
    done = _run(told, "--profile", pair)
    assert done.exit_code == 2
    assert "key=value" in done.stderr


def test_recommend_with_an_unknown_liked_item_is_refused_by_name(told: Path) -> None:
    done = _run(told, "--liked", "zzz")
    assert done.exit_code == 64
    assert "unknown item 'zzz'" in done.stderr
