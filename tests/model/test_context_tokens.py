from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import OneRecConfig
from model.context_tokens import UserTokens, packed
from model.signals import UserSignals, profile_buckets
from tests.model.conftest import PATHWAYS, TOY

CPU = torch.device("cpu")
ITEMS = st.lists(st.integers(0, 19), max_size=10)
SIGNALS = st.builds(
    UserSignals,
    history=ITEMS,
    liked=ITEMS,
    profile=st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz")),
)


@given(st.lists(SIGNALS, min_size=1, max_size=4))
@settings(deadline=None)
def test_packed_rows_are_every_pathway_newest_first_and_then_padding(users: list[UserSignals[int]]) -> None:
    tokens = packed([UserTokens.of(user, PATHWAYS) for user in users], PATHWAYS, CPU)
    assert tokens.places is not None
    assert tokens.features is not None
    for row, user in enumerate(users):
        history, liked = list(user.history)[::-1][:6], list(user.liked)[::-1][:3]
        count = len(history) + len(liked)
        assert tokens.valid[row].tolist() == [True] * count + [False] * (tokens.valid.shape[1] - count)
        assert tokens.items[row, :count].tolist() == history + liked
        assert tokens.places[row, :count].tolist() == [*range(len(history)), *range(6, 6 + len(liked))]
        found = [bucket for bucket in tokens.features[row].tolist() if bucket >= 0]
        assert found == profile_buckets(user.profile, PATHWAYS.profile_features)
    assert int(tokens.items.min() if tokens.items.numel() else 0) >= 0


@given(SIGNALS)
@settings(deadline=None)
def test_tokens_of_a_model_without_pathways_ignore_what_it_does_not_read(user: UserSignals[int]) -> None:
    own = UserTokens.of(user, TOY)
    assert own == UserTokens.of(UserSignals(user.history), TOY)
    tokens = packed([own], TOY, CPU)
    assert tokens.places is None
    assert tokens.features is None


def test_tokens_of_a_long_history_keep_its_newest_items() -> None:
    config = dataclasses.replace(PATHWAYS, context_len=3000, short_term=20, positive_len=256)
    user = UserTokens.of(UserSignals(list(range(5000)), list(range(400))), config)
    assert user.items[:3000] == list(range(4999, 1999, -1))
    assert user.items[3000:] == list(range(399, 143, -1))


def _digest(user: UserSignals[int], config: OneRecConfig = PATHWAYS, model: str = "m") -> bytes:
    return UserTokens.of(user, config).digest(model)


@given(SIGNALS, SIGNALS)
@settings(deadline=None)
def test_digest_is_equal_just_when_the_model_reads_the_same(one: UserSignals[int], other: UserSignals[int]) -> None:
    same = UserTokens.of(one, PATHWAYS) == UserTokens.of(other, PATHWAYS)
    assert (_digest(one) == _digest(other)) is same
    assert _digest(one) != _digest(one, model="another")


def test_digest_changes_with_every_signal_and_not_with_who_asks() -> None:
    user = UserSignals([1, 2, 3], [3], {"a": "x"}, "anna")
    others = [
        UserSignals([1, 2, 3, 4], [3], {"a": "x"}),
        UserSignals([2, 1, 3], [3], {"a": "x"}),
        UserSignals([1, 2, 3], [], {"a": "x"}),
        UserSignals([3, 1, 2, 3], [], {"a": "x"}),  # the same items in a row, but all of them history
        UserSignals([1, 2, 3], [3], {}),
    ]
    digests = {_digest(other) for other in others}
    assert len(digests) == len(others)
    assert _digest(user) not in digests
    assert _digest(user) == _digest(dataclasses.replace(user, user_id="berta"))
    assert _digest(UserSignals([9, 1, 2, 3, 4, 5, 6])) == _digest(UserSignals([1, 2, 3, 4, 5, 6])), "beyond context_len"
