from __future__ import annotations

import math

import numpy as np
import pytest

from model.baselines import ease, item_knn, popularity
from model.data import Row, from_rows
from model.errors import ModelError
from model.evaluate import evaluate
from model.split import Split, leave_one_out


def _split() -> Split:
    text = "a:pqrxy b:pqsxy c:pqrts d:rtuqp"
    rows = [
        Row(user, item, float(time), 0.0)
        for user, items in (part.split(":") for part in text.split())
        for time, item in enumerate(items)
    ]
    return leave_one_out(from_rows(rows))


def test_popularity_ranks_by_training_users_and_skips_the_history() -> None:
    split = _split()
    users = {item: sum(item in history for history in split.train) for item in range(split.n_items)}
    history = split.train[0]
    (ranked,) = popularity(split)([history], 3)
    expected = sorted((i for i in range(split.n_items) if i not in history), key=lambda i: (-users[i], i))
    assert ranked.tolist() == expected[:3]


def test_item_knn_scores_equal_cosines_by_loops() -> None:
    split = _split()
    sets = [{user for user, history in enumerate(split.train) if item in history} for item in range(split.n_items)]

    def cosine(a: int, b: int) -> float:
        both = math.sqrt(len(sets[a]) * len(sets[b]))
        return len(sets[a] & sets[b]) / both if both and a != b else 0.0

    knn = item_knn(split, neighbours=split.n_items)
    history = split.train[3][:2]
    (ranked,) = knn([history], 3)
    scores = {
        item: sum(cosine(item, past) for past in history) + 1e-9 * len(sets[item])
        for item in range(split.n_items)
        if item not in history
    }
    assert ranked.tolist() == sorted(scores, key=lambda item: (-scores[item], item))[:3]


def test_item_knn_with_few_neighbours_keeps_only_the_nearest() -> None:
    weights = item_knn(_split(), neighbours=1).weights
    assert weights is not None
    columns = (weights > 0).sum(axis=0)
    assert columns.max() <= np.unique(weights).shape[0] * 3
    assert columns.max() < _split().n_items - 1


def test_baselines_answer_an_empty_history_and_a_nearly_complete_one() -> None:
    split = _split()
    everything = np.arange(split.n_items - 1)
    for baseline in (popularity(split), item_knn(split), ease(split)):
        ranked = baseline([np.array([], dtype=np.int64), everything], 3)
        assert (ranked[0] >= 0).all()
        assert ranked[1].tolist() == [split.n_items - 1, -1, -1]


def test_item_knn_beats_chance_on_planted_neighbours(toy_split: Split) -> None:
    assert evaluate(item_knn(toy_split), toy_split, k=5).hit_rate > 0.4


@pytest.mark.parametrize("ridge", [0.5, 20.0])
def test_ease_columns_are_ridge_regressions_of_each_item_on_all_others(ridge: float) -> None:
    split = _split()
    seen = np.zeros((len(split.train), split.n_items))
    for user, history in enumerate(split.train):
        seen[user, history] = 1.0
    weights = ease(split, ridge).weights
    assert weights is not None
    for item in range(split.n_items):
        others = [other for other in range(split.n_items) if other != item]
        # least squares on rows stacked below by sqrt(ridge)·I is ridge regression
        stacked = np.vstack([seen[:, others], np.sqrt(ridge) * np.eye(len(others))])
        target = np.concatenate([seen[:, item], np.zeros(len(others))])
        expected = np.linalg.lstsq(stacked, target, rcond=None)[0]
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-6)
        assert weights[item, item] == 0.0


def test_ease_beats_chance_on_planted_neighbours_and_needs_a_ridge(toy_split: Split) -> None:
    assert evaluate(ease(toy_split, 10.0), toy_split, k=5).hit_rate > 0.4
    with pytest.raises(ModelError, match="ridge"):
        ease(toy_split, 0.0)
