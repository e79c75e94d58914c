from __future__ import annotations

import numpy as np
import pytest

from model.data import Interactions, Row, from_rows
from model.dlrm_features import CATEGORIES, DENSE, FeatureLog, heldout_impressions, training_impressions
from model.split import leave_one_out

RATINGS = [("a", "x", 10.0, 5.0), ("b", "x", 20.0, 3.0), ("a", "y", 30.0, 1.0), ("a", "x2", 7200.0, 4.0)]


def small(value: float | None = None) -> Interactions:
    rows = [Row(user, item, when, rating if value is None else value) for user, item, when, rating in RATINGS]
    return from_rows(rows, None, {"y": ["noir", "old"], "x": ["dance"]})


def features(interactions: Interactions, user: str, item: str, row: int) -> dict[str, float]:
    log = FeatureLog(interactions)
    one = np.array([interactions.users.index(user)]), np.array([interactions.items.index(item)]), np.array([row])
    found = log.impressions(*one, np.array([1]))
    return dict(zip((*DENSE, *CATEGORIES), [*found.dense[0].tolist(), *found.categories[0].tolist()], strict=True))


def test_features_know_what_was_before_and_nothing_else() -> None:
    found = features(small(), "a", "x", 2)
    assert (found["timestamp_s"], found["user_events"], found["user_rating_sum"]) == (30.0, 1.0, 5.0)
    assert (found["s_since_user_event"], found["item_events"], found["item_rating_sum"]) == (20.0, 2.0, 8.0)
    assert found["s_since_item_event"] == 10.0
    first = features(small(), "a", "x", 0)
    assert [first[name] for name in DENSE] == [10.0, 0, 0, 0, 0, 0, 0]


def test_an_item_nobody_met_yet_has_no_past() -> None:
    found = features(small(), "b", "x2", 2)
    assert [found[name] for name in DENSE[4:]] == [0, 0, 0]


def test_categories_are_user_item_first_genre_and_hour() -> None:
    found = features(small(), "a", "y", 3)
    assert (found["first_genre"], found["hour_utc"]) == (2.0, 2.0)
    assert features(small(), "a", "x2", 3)["first_genre"] == 0.0
    assert FeatureLog(small()).cardinalities == (2, 3, 4, 24)


def test_without_values_sums_are_counts() -> None:
    found = features(small(float("nan")), "a", "x", 3)
    assert found["user_rating_sum"] == found["user_events"] == 2.0


@pytest.mark.parametrize("negatives", [1, 5])
def test_training_leaves_the_held_out_items_out_and_never_calls_a_met_item_a_negative(
    toy_interactions: Interactions, negatives: int
) -> None:
    split, log = leave_one_out(toy_interactions), FeatureLog(toy_interactions)
    seen = training_impressions(log, split, negatives, np.random.default_rng(0))
    held = heldout_impressions(log, split, negatives, np.random.default_rng(1))
    met = set(zip(toy_interactions.user.tolist(), toy_interactions.item.tolist(), strict=True))
    for part in (seen, held):
        pairs = [tuple(row) for row in part.categories[:, :2].tolist()]
        assert all((pair in met) == bool(clicked) for pair, clicked in zip(pairs, part.clicked, strict=True))
        assert (part.clicked == 0).any()
    shown = {tuple(row) for row in held.categories[held.clicked == 1, :2].tolist()}
    assert shown == {(user, int(split.test[user])) for user in split.evaluated_users().tolist()}
    assert not shown & {tuple(row) for row in seen.categories[:, :2].tolist()}
