from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import OneRecConfig
from model.context_tokens import ContextTokens
from model.data import Row, from_rows
from model.errors import ModelError
from model.onerec import OneRecV2
from model.signals import profile_buckets
from model.split import Split, leave_one_out
from model.train import Samples, TrainOptions, train
from tests.model.conftest import PATHWAYS

RATINGS = st.lists(
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from([1.0, 3.0, 4.0, 5.0])), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


def _split(histories: list[list[tuple[int, float]]]) -> Split:
    """Users with rated items; one more user makes sure that there is something to hold out."""
    users = [*histories, [(0, 5.0), (1, 1.0), (2, 4.0), (3, 4.0)]]
    rows = [
        Row(f"u{user}", f"i{item}", float(time), value)
        for user, history in enumerate(users)
        for time, (item, value) in enumerate(history)
    ]
    profiles = {f"u{user}": {"parity": str(user % 2), "user": str(user)} for user in range(len(users) - 1)}
    return leave_one_out(from_rows(rows, {f"i{item}": "" for item in range(12)}, profiles=profiles))


def _liked_of(tokens: ContextTokens, row: int, config: OneRecConfig) -> list[int]:
    assert tokens.places is not None
    picked = tokens.valid[row] & (tokens.places >= config.context_len)
    return tokens.items[row][picked].tolist()


@given(RATINGS)
@settings(deadline=None)
def test_samples_see_what_was_liked_before_the_target_and_nothing_else(
    histories: list[list[tuple[int, float]]],
) -> None:
    """No leakage: the newest positively rated items of the same user that precede the target, by loops."""
    config, split = PATHWAYS, _split(histories)
    samples, targets = Samples.with_validation(split, config)
    for these, with_validation in ((Samples.of(split, config), False), (samples, True)):
        tokens = these.tokens(torch.arange(len(these)), config)
        users = split.evaluated_users().tolist() if with_validation else range(len(split.train))
        position = 0
        for user in users:
            history = split.history(user, with_validation=with_validation).tolist()
            first = {split.interactions.items.index(f"i{i}"): v for i, v in reversed(_rated(histories, split, user))}
            for place, target in enumerate(history):
                before = history[:place]
                liked = [item for item in before if first[item] >= config.positive_from]
                assert _liked_of(tokens, position, config) == liked[::-1][: config.positive_len]
                assert target not in _liked_of(tokens, position, config)
                in_history = tokens.valid[position] & (tokens.places < config.context_len)
                assert tokens.items[position][in_history].tolist() == before[::-1][: config.context_len]
                position += 1
        assert position == len(these)
    assert samples.items[targets].tolist() == split.validation[split.evaluated_users()].tolist()


def _rated(histories: list[list[tuple[int, float]]], split: Split, user: int) -> list[tuple[int, float]]:
    name = int(split.interactions.users[user][1:])
    return [*histories, [(0, 5.0), (1, 1.0), (2, 4.0), (3, 4.0)]][name]


@given(RATINGS, st.integers(0, 100))
@settings(deadline=None)
def test_samples_do_not_change_with_ratings_that_come_later(histories: list[list[tuple[int, float]]], at: int) -> None:
    """Whatever is thought of the target and all after it, the context of the target stays what it is."""
    split, config = _split(histories), PATHWAYS
    samples = Samples.of(split, config)
    sample = at % len(samples)
    end = int(torch.searchsorted(samples.start, samples.start[sample], right=True))
    liked = torch.isin(torch.arange(len(samples)), _liked_positions(samples))
    for changed in (liked & False, liked | True):
        after = torch.where(torch.arange(len(samples)) >= sample, changed, liked)
        after[end:] = liked[end:]
        other = dataclasses.replace(
            samples,
            positives=dataclasses.replace(
                samples.positives, items=samples.items[after], until=after.cumsum(0) - after.long()
            ),
        )
        one, two = (these.tokens(torch.tensor([sample]), config) for these in (samples, other))
        assert torch.equal(one.items[one.valid], two.items[two.valid])


def _liked_positions(samples: Samples) -> torch.Tensor:
    assert samples.positives is not None
    until = torch.cat([samples.positives.until, torch.tensor([samples.positives.items.shape[0]])])
    return (until.diff() > 0).nonzero()[:, 0]


def test_samples_carry_the_profile_of_their_user() -> None:
    split = _split([[(item, 1.0) for item in range(5)], [(4, 5.0)]])
    samples = Samples.of(split, PATHWAYS)
    tokens = samples.tokens(torch.arange(len(samples)), PATHWAYS)
    assert tokens.features is not None
    rows = iter(tokens.features.tolist())
    for user, history in enumerate(split.train):
        expected = profile_buckets(split.interactions.profiles[user], PATHWAYS.profile_features)
        for _ in history:
            assert [bucket for bucket in next(rows) if bucket >= 0] == expected


def test_samples_of_a_model_without_pathways_are_what_they_were(toy_split: Split, toy_config: OneRecConfig) -> None:
    plain, configured = Samples.of(toy_split), Samples.of(toy_split, toy_config)
    assert plain.tensors().keys() == configured.tensors().keys() == {"items", "start"}
    tokens = configured.tokens(torch.arange(9), toy_config)
    assert tokens.places is None
    assert tokens.features is None
    assert torch.equal(tokens.items, plain.windows(torch.arange(9), toy_config.context_len)[0])


def test_samples_share_the_histories_memory_with_every_window() -> None:
    """Copy-free: as many numbers as there are interactions, however long the contexts are."""
    split = _split([[(item, 5.0) for item in range(12)]] * 3)
    long = dataclasses.replace(PATHWAYS, context_len=4000, positive_len=1000)
    sizes = {name: tensor.shape[0] for name, tensor in Samples.of(split, long).tensors().items()}
    assert sizes == {name: tensor.shape[0] for name, tensor in Samples.of(split, PATHWAYS).tensors().items()}
    assert sizes["positives.items"] <= sizes["items"]


def test_training_learns_what_only_the_liked_item_tells(pathway_config: OneRecConfig) -> None:
    """Who liked item 0 goes on with 2, who liked item 1 with 3; the histories alone do not say which."""
    rng, rows = np.random.default_rng(0), []
    for user in range(60):
        liked = user % 2
        order = [0, 1] if rng.random() < 0.5 else [1, 0]
        for time, item in enumerate([*order, 2 + liked, 4, 5]):
            rows.append(Row(f"u{user}", f"i{item}", float(time), 5.0 if item == liked else 1.0))
    split = leave_one_out(from_rows(rows))
    options = TrainOptions(epochs=12, batch_size=32, learning_rate=2e-2)
    config = dataclasses.replace(pathway_config, n_layers=1, kv_sets=1, codebook_size=3, profile_features=0)
    plain = dataclasses.replace(config, positive_len=0)
    losses = [train(split, one, 0, options).losses[-1] for one in (config, plain)]
    assert losses[0] < 0.6 * losses[1]


def test_training_with_all_pathways_repeats_and_moves_every_weight(
    toy_split: Split, pathway_config: OneRecConfig
) -> None:
    rated = dataclasses.replace(
        toy_split,
        values=tuple(np.where(np.arange(len(v)) % 2 == 0, 5.0, 1.0) for v in toy_split.values),
        interactions=dataclasses.replace(
            toy_split.interactions, profiles=tuple({"parity": str(u % 2)} for u in range(30))
        ),
    )
    options = TrainOptions(epochs=1, batch_size=32, patience=1)
    first, again = (train(rated, pathway_config, 0, options) for _ in range(2))
    assert first.step_losses == again.step_losses
    assert first.validation_losses == again.validation_losses
    torch.manual_seed(0)
    start, end = OneRecV2(pathway_config).state_dict(), first.model.state_dict()
    for name in ("short_term", "positive", "positive_recency.weight", "features.weight"):
        assert not torch.equal(start[f"context.{name}"], end[f"context.{name}"]), name
    untouched = set(range(7)) - {profile_buckets({"parity": parity}, 7)[0] for parity in "01"}
    assert not end["context.features.weight"][sorted(untouched)].any(), "a value that nobody had says nothing"


def test_resumed_training_of_pathways_is_refused_for_other_ratings(
    toy_split: Split, pathway_config: OneRecConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    options = TrainOptions(epochs=1, batch_size=64)
    train(toy_split, pathway_config, 0, options, state_path=path)
    liked = dataclasses.replace(toy_split, values=tuple(np.full(len(v), 5.0) for v in toy_split.values))
    with pytest.raises(ModelError, match="other data"):
        train(liked, pathway_config, 0, options, state_path=path)


@pytest.fixture
def paged_split() -> Split:
    """a meets x alone and then vwy at once; b meets vw at the time of a's page, then xyz one by one."""
    rows = [Row("a", "x", 1.0, 0.0), *(Row("a", item, 5.0, 0.0) for item in "vwy"), Row("a", "p", 6.0, 0.0)]
    rows += [Row("a", "q", 7.0, 0.0), Row("b", "v", 5.0, 0.0), Row("b", "w", 5.0, 0.0)]
    rows += [Row("b", item, 6.0 + time, 0.0) for time, item in enumerate("xyz")]
    return leave_one_out(from_rows(rows))


def _names(split: Split, items: torch.Tensor) -> str:
    return "".join(split.interactions.items[item] for item in items.tolist())


def test_samples_are_every_position_with_its_history_newest_first(toy_split: Split) -> None:
    samples = Samples.of(toy_split)
    assert len(samples) == sum(len(history) for history in toy_split.train)
    items, valid = samples.windows(torch.arange(len(samples)), 3)
    position = 0
    for history in toy_split.train:
        for place, target in enumerate(history.tolist()):
            expected = history[max(0, place - 3) : place][::-1].tolist()
            assert items[position][valid[position]].tolist() == expected
            assert int(samples.items[position]) == target
            position += 1


def test_samples_newest_are_the_last_of_each_user_with_their_whole_history(toy_split: Split) -> None:
    samples = Samples.of(toy_split)
    ends = np.cumsum([len(history) for history in toy_split.train])
    for count in (1, 3):
        expected = [
            sample
            for end, history in zip(ends, toy_split.train, strict=True)
            for sample in range(max(end - count, end - len(history)), end)
        ]
        assert samples.newest(count).tolist() == expected
    last, valid = samples.windows(samples.newest(1), 100)
    for row, history in enumerate(toy_split.train):
        assert last[row][valid[row]].tolist() == history[:-1][::-1].tolist()
    assert torch.equal(samples.newest(0), torch.arange(len(samples)))


def test_samples_instant_is_shared_by_one_user_and_time_only(paged_split: Split) -> None:
    samples = Samples.of(paged_split)
    assert _names(paged_split, samples.items) == "xvwyvwx"
    assert samples.instant.tolist() == [1, 2, 2, 2, 3, 3, 4]


def test_samples_instant_is_that_of_the_first_meeting(paged_split: Split) -> None:
    seen = paged_split.interactions
    rows = [
        Row(seen.users[user], seen.items[item], time, 0.0)
        for user, item, time in zip(seen.user, seen.item, seen.timestamp, strict=True)
    ]
    later = [dataclasses.replace(row, timestamp=row.timestamp + 50.0) for row in rows]
    doubled = Samples.of(leave_one_out(from_rows(rows + later)))
    assert torch.equal(doubled.instant, Samples.of(paged_split).instant)


def test_samples_reordered_moves_items_within_their_instant_and_tries_every_order(paged_split: Split) -> None:
    samples, generator = Samples.of(paged_split), torch.Generator().manual_seed(0)
    found = [samples.reordered(generator) for _ in range(200)]
    orders = [_names(paged_split, one.items) for one in found]
    assert {(order[0], order[6]) for order in orders} == {("x", "x")}
    assert {order[1:4] for order in orders} == {"vwy", "vyw", "wvy", "wyv", "yvw", "ywv"}
    assert {order[4:6] for order in orders} == {"vw", "wv"}
    assert all(torch.equal(one.start, samples.start) for one in found)
    assert _names(paged_split, samples.items) == "xvwyvwx", "the samples themselves stay"


def test_samples_reordered_repeats_with_its_generator_and_leaves_distinct_times_alone(
    paged_split: Split, toy_split: Split
) -> None:
    samples = Samples.of(paged_split)
    first, again = (samples.reordered(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.items, again.items)
    plain = Samples.of(toy_split)
    assert torch.equal(plain.reordered(torch.Generator().manual_seed(3)).items, plain.items)


def test_samples_reordered_takes_what_was_liked_along() -> None:
    rated = {0: 5.0, 1: 1.0, 2: 4.0, 3: 4.0} | {item: 5.0 if item % 2 else 1.0 for item in range(4, 10)}
    split = _split([list(rated.items())])
    samples = Samples.of(split, PATHWAYS)
    together = dataclasses.replace(samples, instant=torch.zeros_like(samples.instant))
    before = {int(item) for item in samples.positives.items}  # type: ignore[union-attr]
    mixed = together.reordered(torch.Generator().manual_seed(1))
    assert mixed.positives is not None
    assert {int(item) for item in mixed.positives.items} == before
    for position in range(len(mixed)):
        seen = mixed.positives.items[: int(mixed.positives.until[position])].tolist()
        assert seen == [item for item in mixed.items[:position].tolist() if item in before]
