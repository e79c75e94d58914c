from __future__ import annotations

import dataclasses

import pytest
import torch

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.data import Row, from_rows
from model.errors import ModelError
from model.evaluate import evaluate, ranker_of
from model.recommender import Recommender
from model.split import Split, leave_one_out
from model.train import Progress, TrainOptions, train

QUICK = TrainOptions(epochs=12, batch_size=32, learning_rate=1e-2)


@pytest.fixture
def small(toy_config: OneRecConfig) -> OneRecConfig:
    return dataclasses.replace(toy_config, n_layers=1, kv_sets=1, kv_split=1, kv_groups=4)


def test_training_learns_the_planted_next_item(toy_split: Split, small: OneRecConfig) -> None:
    reports: list[Progress] = []
    result = train(toy_split, small, seed=0, options=QUICK, progress=reports.append)
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert reports[-1].step == reports[-1].steps == len(reports)
    ranker = ranker_of(Recommender(result.model, Catalogue.of(toy_split.interactions), result.tokenizer, 20))
    assert evaluate(ranker, toy_split, k=1).hit_rate > 0.8


def test_training_repeats_with_its_seed_and_differs_with_another(toy_split: Split, small: OneRecConfig) -> None:
    options = dataclasses.replace(QUICK, epochs=2)
    torch.manual_seed(123)
    before = torch.rand(1)
    torch.manual_seed(123)
    first, again, other = (train(toy_split, small, seed=seed, options=options) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), before), "training must not disturb the caller's random state"
    assert first.losses == again.losses
    assert first.losses != other.losses
    states = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 0}, {"threads": 0}, {"learning_rate": 0.0}])
def test_train_options_impossible_values_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(change))):
        TrainOptions(**change)


def test_training_with_too_few_codes_is_refused(toy_split: Split, small: OneRecConfig) -> None:
    with pytest.raises(ModelError, match="codebook_size"):
        train(toy_split, dataclasses.replace(small, codebook_size=2), seed=0)


def test_training_works_on_the_smallest_possible_data(small: OneRecConfig) -> None:
    split = leave_one_out(from_rows([Row("a", item, float(time), 1.0) for time, item in enumerate("xyz")]))
    result = train(split, small, seed=0, options=dataclasses.replace(QUICK, epochs=1))
    recommender = Recommender(result.model, Catalogue.of(split.interactions), result.tokenizer)
    assert [scored.item_id for scored in recommender.recommend([["x", "y"]], k=3)[0]] == ["z"]
