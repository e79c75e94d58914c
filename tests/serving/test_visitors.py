"""Visitors: the same for the same seed, honest about what models have seen, and better served by better slates."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest

from model.baselines import item_knn
from model.data import Row, from_rows
from model.split import Split, leave_one_out
from serving.errors import ConfigurationError
from serving.visitors import Audience, Behaviour, Visitors

GROUPS, ITEMS_EACH, USERS_EACH = 4, 25, 15


@pytest.fixture(scope="module")
def split() -> Split:
    """Users of four tastes, each among its own 25 items of one genre."""
    rng = np.random.default_rng(5)
    rows, genres = [], {}
    for group in range(GROUPS):
        items = [f"g{group}-{i}" for i in range(ITEMS_EACH)]
        genres.update(dict.fromkeys(items, (f"genre-{group}",)))
        for user in range(USERS_EACH):
            for t, item in enumerate(rng.permutation(items)[:14]):
                rows.append(Row(f"u{group}-{user}", str(item), 1000.0 * t + user, 4.0))
    return leave_one_out(from_rows(rows, genres=genres))


def test_a_visitor_is_the_same_for_the_same_seed_and_differs_for_another(split: Split) -> None:
    first, again, other = Visitors(split, 7), Visitors(split, 7), Visitors(split, 8)
    assert [first.visitor(i) for i in range(200)] == [again.visitor(i) for i in reversed(range(200))][::-1]
    assert [first.visitor(i).source for i in range(50)] != [other.visitor(i).source for i in range(50)]


def test_visitors_outnumber_the_users_under_ids_of_their_own(split: Split) -> None:
    drawn = [Visitors(split, 7).visitor(i) for i in range(500)]
    assert len({visitor.visitor_id for visitor in drawn}) == 500
    assert drawn[123].visitor_id == "v000123"
    assert {visitor.source for visitor in drawn} == set(split.interactions.users)


def test_the_future_is_what_no_model_was_trained_on(split: Split) -> None:
    names, users = split.interactions.items, split.interactions.users
    for visitor in (Visitors(split, 7).visitor(i) for i in range(100)):
        user = users.index(visitor.source)
        trained = {names[item] for item in split.train[user]}
        assert visitor.future
        assert not trained & set(visitor.future)
        assert not set(visitor.history) & set(visitor.future)
        assert names[split.test[user]] in visitor.future


def test_both_cuts_occur_and_the_history_is_everything_before_the_cut(split: Split) -> None:
    names, users = split.interactions.items, split.interactions.users
    lengths = set()
    for visitor in (Visitors(split, 7).visitor(i) for i in range(50)):
        late = len(visitor.future) == 1
        known = split.history(users.index(visitor.source), with_validation=late)
        assert visitor.history == tuple(names[item] for item in known)
        lengths.add(len(visitor.future))
    assert lengths == {1, 2}


def test_a_long_history_keeps_its_newest_items(split: Split) -> None:
    whole, short = Visitors(split, 7).visitor(3), Visitors(split, 7, max_history=5).visitor(3)
    assert short.history == whole.history[-5:]


def test_nonsense_is_refused_by_name(split: Split) -> None:
    with pytest.raises(ConfigurationError, match="max_history"):
        Visitors(split, 7, max_history=0)
    with pytest.raises(ConfigurationError, match="number"):
        Visitors(split, 7).visitor(-1)


def test_reactions_do_not_depend_on_order_or_on_what_else_happened(split: Split) -> None:
    slate = list(split.interactions.items[:10])
    busy, fresh = Visitors(split, 7), Visitors(split, 7)
    expected = {(i, n): busy.react(busy.visitor(i), n, slate) for i in range(40) for n in range(2)}
    for (i, n), reactions in reversed(expected.items()):
        assert fresh.react(fresh.visitor(i), n, slate) == reactions


def test_an_item_is_judged_alike_whatever_surrounds_it(split: Split) -> None:
    visitors, items = Visitors(split, 7), split.interactions.items
    for visitor in (visitors.visitor(i) for i in range(50)):
        one = visitors.react(visitor, 0, [*items[:3], "g1-4"])[3]
        two = visitors.react(visitor, 0, [*items[50:53], "g1-4"])[3]
        assert one == two


def test_requests_of_a_visitor_have_dice_of_their_own(split: Split) -> None:
    visitors, slate = Visitors(split, 7), list(split.interactions.items[:10])
    visitor = visitors.visitor(0)
    assert len({tuple(visitors.react(visitor, n, slate)) for n in range(30)}) > 10


def test_click_probability_is_relevance_over_the_discount_of_the_position(split: Split) -> None:
    visitors = Visitors(split, 7)
    clicks: dict[int, list[bool]] = {0: [], 3: []}
    for number in range(3000):
        visitor = visitors.visitor(number)
        slate = ["other"] * 4
        for position, seen in clicks.items():
            slate[position] = visitor.future[-1]
            seen.append(visitors.react(visitor, position, slate)[position].clicked)
    top, fourth = mean(clicks[0]), mean(clicks[3])
    assert top == pytest.approx(0.9, abs=0.025)
    assert fourth == pytest.approx(0.9 / np.log2(5), abs=0.035)


def test_relevance_orders_future_near_genre_other(split: Split) -> None:
    behaviour = Behaviour(neighbours=5)
    visitors = Visitors(split, 7, behaviour)
    visitor = visitors.visitor(1)
    group = visitor.future[0].split("-")[0]
    own = {visitors.relevance(visitor, f"{group}-{i}") for i in range(ITEMS_EACH)}
    foreign = {visitors.relevance(visitor, f"g{(int(group[1]) + 1) % GROUPS}-{i}") for i in range(ITEMS_EACH)}
    assert own == {behaviour.future, behaviour.near, behaviour.genre}
    assert foreign == {behaviour.other}


def test_an_item_outside_the_data_is_seen_and_never_clicked(split: Split) -> None:
    visitors = Visitors(split, 7)
    reactions = [visitors.react(visitors.visitor(i), 0, ["unheard-of"])[0] for i in range(300)]
    assert not any(reaction.clicked for reaction in reactions)


def test_only_clicks_are_watched_and_liked_and_watching_is_capped(split: Split) -> None:
    visitors = Visitors(split, 7, Behaviour(watch_cap_s=50.0))
    items = split.interactions.items[:20]
    seen = [reaction for i in range(400) for reaction in visitors.react(visitors.visitor(i), 0, items)]
    clicked = [reaction for reaction in seen if reaction.clicked]
    assert all(reaction.watch_s == 0.0 and not reaction.liked for reaction in seen if not reaction.clicked)
    assert all(0 < reaction.watch_s <= 50.0 for reaction in clicked)
    assert 0 < sum(reaction.liked for reaction in clicked) < len(clicked) / 2


def test_a_good_recommender_is_clicked_far_more_than_chance(split: Split) -> None:
    visitors, rng, names = Visitors(split, 7), np.random.default_rng(1), split.interactions.items
    index = {name: i for i, name in enumerate(names)}
    drawn = [visitors.visitor(i) for i in range(600)]
    best = item_knn(split)([np.array([index[item] for item in v.history]) for v in drawn], 10)
    good = [
        r.clicked for v, row in zip(drawn, best, strict=True) for r in visitors.react(v, 0, [names[i] for i in row])
    ]
    chance = [r.clicked for v in drawn for r in visitors.react(v, 0, list(rng.choice(names, 10, replace=False)))]
    assert mean(chance) < 0.7 * mean(good)


def test_nearest_items_share_the_audience_and_exclude_the_item_itself(split: Split) -> None:
    audience, names = Audience(split), split.interactions.items
    nearest = audience.nearest(0, 10)
    assert 0 not in nearest
    assert len(nearest) == 10
    assert {names[i].split("-")[0] for i in nearest} == {names[0].split("-")[0]}
