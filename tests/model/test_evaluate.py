from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model.catalogue import Catalogue
from model.config import OneRecConfig
from model.data import IntArray
from model.evaluate import accuracy, evaluate, evaluate_signals, legality, ranker_of
from model.gbpo import item_log_probs
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.signals import UserSignals
from model.split import Split


def test_accuracy_by_hand() -> None:
    ranked = np.array([[7, 1, 2], [3, 4, 5], [6, 8, -1]])
    got = accuracy(ranked, np.array([2, 9, 6]), n_items=10)
    assert got.hit_rate == pytest.approx(2 / 3)
    assert got.ndcg == pytest.approx((1 / math.log2(4) + 0 + 1) / 3)
    assert (got.k, got.users, got.coverage) == (3, 3, 0.8)


@pytest.mark.parametrize("validation", [True, False])
def test_evaluate_shows_the_ranker_only_what_precedes_the_target(toy_split: Split, validation: bool) -> None:
    asked: list[IntArray] = []

    def oracle(histories: list[IntArray], k: int) -> IntArray:
        asked.extend(histories)
        targets = toy_split.validation if validation else toy_split.test
        return np.repeat(targets[:, None], k, axis=1)

    assert evaluate(oracle, toy_split, validation=validation).hit_rate == 1.0
    for user, history in enumerate(asked):
        assert toy_split.test[user] not in history
        assert (toy_split.validation[user] in history) is not validation


def test_ranker_of_a_recommender_agrees_with_it_across_batches(
    toy_model: OneRecV2, toy_split: Split, toy_tokenizer: Tokenizer
) -> None:
    recommender = Recommender(toy_model, Catalogue.of(toy_split.interactions), toy_tokenizer, beam_width=10)
    histories = list(toy_split.train[:7])
    ranked = ranker_of(recommender, batch_size=3)(histories, 5)
    names = recommender.catalogue.ids
    for history, row in zip(histories, ranked, strict=True):
        (answer,) = recommender.recommend([[names[item] for item in history]], k=5)
        assert [scored.item_id for scored in answer] == [names[item] for item in row]


@pytest.mark.parametrize("validation", [True, False])
def test_evaluation_with_signals_equals_that_with_histories_for_a_model_without_pathways(
    toy_model: OneRecV2, toy_split: Split, toy_tokenizer: Tokenizer, validation: bool
) -> None:
    recommender = Recommender(toy_model, Catalogue.of(toy_split.interactions), toy_tokenizer, beam_width=10)
    plain = evaluate(ranker_of(recommender), toy_split, 5, validation=validation)
    assert evaluate_signals(recommender, toy_split, 5, validation=validation, batch_size=7) == plain


@pytest.mark.parametrize("validation", [True, False])
def test_evaluation_with_signals_shows_only_what_precedes_the_target(
    make_model: Callable[..., OneRecV2],
    pathway_config: OneRecConfig,
    toy_split: Split,
    toy_tokenizer: Tokenizer,
    validation: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    liked = dataclasses.replace(toy_split, values=tuple(np.full(len(v), 5.0) for v in toy_split.values))
    recommender = Recommender(make_model(pathway_config), Catalogue.of(liked.interactions), toy_tokenizer, 5)
    asked: list[UserSignals[int]] = []
    rank = Recommender.rank

    def noting(self: Recommender, users: list[UserSignals[int]], width: int) -> tuple[Tensor, Tensor]:
        asked.extend(users)
        return rank(self, users, width)

    monkeypatch.setattr(Recommender, "rank", noting)
    evaluate_signals(recommender, liked, 5, validation=validation)
    for user, signals in enumerate(asked):
        assert signals.liked == signals.history == liked.history(user, with_validation=not validation).tolist()
        assert liked.test[user] not in signals.liked
        assert (liked.validation[user] in signals.liked) is not validation


def test_legality_is_the_probability_of_all_items_together(
    toy_model: OneRecV2, toy_split: Split, toy_tokenizer: Tokenizer
) -> None:
    recommender = Recommender(toy_model, Catalogue.of(toy_split.interactions), toy_tokenizer, beam_width=10)
    expected = []
    with torch.inference_mode():
        for user in toy_split.evaluated_users()[:3].tolist():
            history = toy_split.history(user, with_validation=True).tolist()
            context = recommender.context([history] * toy_tokenizer.n_items)
            expected.append(float(item_log_probs(toy_model, context, toy_tokenizer.codes).double().exp().sum()))
    assert legality(recommender, toy_split, users=3, batch_size=2) == pytest.approx(np.mean(expected), rel=1e-4)
    assert 0.0 < np.mean(expected) < 1.0
