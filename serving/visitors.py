"""Simulated visitors: who they are comes from real users' histories, what they do from a documented model of clicks.

A simulation, not a claim about people: it makes live traffic whose clicks depend on the slate, so that a good
recommender is clicked more than a bad one. A visitor knows their own taste and the slate, and nothing of experiments.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.data import IntArray
from model.split import Split
from serving.errors import ConfigurationError

_KEPT_TASTES = 4096
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """P(click | item, position) = relevance(item) / log2(position + 2), each item examined on its own.

    relevance: `future` for an item that the real user did go on to, `near` for one of its `neighbours` nearest items
    by shared audience, `genre` for one that shares a genre with it, `other` for the rest. A click is watched for a
    log-normal time (median watch_median_s, longer for a relevant item, at most watch_cap_s) and liked with
    probability like × relevance.
    """

    future: float = 0.9
    near: float = 0.55
    genre: float = 0.08
    other: float = 0.03
    neighbours: int = 50
    watch_median_s: float = 60.0
    watch_sigma: float = 0.6
    watch_cap_s: float = 600.0
    like: float = 0.3


@dataclass(frozen=True, slots=True)
class Visitor:
    """A visitor: history (item ids, oldest first) is what the real user `source` had met before the cut.

    taste: index of the (user, cut) pair, which says what they will like.
    """

    number: int
    visitor_id: str
    source: str
    history: tuple[str, ...]
    future: tuple[str, ...]
    taste: int


class Reaction(NamedTuple):
    """What a visitor did with one item of a slate; watch_s is 0.0 without a click."""

    item_id: str
    position: int
    clicked: bool
    watch_s: float
    liked: bool


class Visitors:
    """Visitor i is a draw, with replacement, of a real user and a cut; everything is a pure function of the seed.

    The cut lies before the validation or before the test item, so that the future holds only interactions that no
    model was trained on. There is no end of visitors: more of them than users share tastes, but not their dice.
    """

    def __init__(self, split: Split, seed: int, behaviour: Behaviour | None = None, max_history: int = 200) -> None:
        """Raises ConfigurationError when a visitor would have no history to show."""
        if max_history < 1:
            raise ConfigurationError(f"max_history: must be at least 1, got {max_history}")
        self._split, self._max_history = split, max_history
        self._behaviour = behaviour or Behaviour()
        self._names = split.interactions.items
        self._index = {name: index for index, name in enumerate(self._names)}
        self._sources = split.evaluated_users()
        self._key = hashlib.blake2b(f"visitors of seed {seed}".encode(), digest_size=32).digest()
        self._audience = Audience(split)
        self._genres = _genre_matrix(split)
        self._tastes: OrderedDict[int, npt.NDArray[np.float64]] = OrderedDict()

    def visitor(self, number: int) -> Visitor:
        """Visitor `number` (from 0), always the same one."""
        if number < 0:
            raise ConfigurationError(f"number: must not be negative, got {number}")
        who, when, _, _ = self._dice(f"visitor/{number}")
        taste = 2 * int(who * len(self._sources)) + int(when >= 0.5)
        history, future = self._past_and_future(taste)
        return Visitor(
            number=number,
            visitor_id=f"v{number:06d}",
            source=self._split.interactions.users[int(self._sources[taste // 2])],
            history=tuple(self._names[item] for item in history[-self._max_history :]),
            future=tuple(self._names[item] for item in future),
            taste=taste,
        )

    def react(self, visitor: Visitor, request_number: int, slate: Sequence[str]) -> list[Reaction]:
        """What the visitor does with their n-th slate: the same for the same slate, whenever and wherever it comes.

        An item that the data set does not know is seen, and never clicked.
        """
        relevances, behaviour = self._taste(visitor.taste), self._behaviour
        reactions = []
        for position, item_id in enumerate(slate):
            index = self._index.get(item_id)
            relevance = 0.0 if index is None else float(relevances[index])
            click, watch, like, _ = self._dice(f"react/{visitor.number}/{request_number}/{item_id}")
            if click >= relevance / math.log2(position + 2):
                reactions.append(Reaction(item_id, position, False, 0.0, False))
                continue
            median = behaviour.watch_median_s * (0.5 + relevance)
            watched = median * math.exp(behaviour.watch_sigma * _NORMAL.inv_cdf(watch))
            seconds = round(min(watched, behaviour.watch_cap_s), 1)
            reactions.append(Reaction(item_id, position, True, seconds, like < behaviour.like * relevance))
        return reactions

    def relevance(self, visitor: Visitor, item_id: str) -> float:
        """How much the visitor likes an item, 0 to 1: their click probability on top of a slate."""
        index = self._index.get(item_id)
        return 0.0 if index is None else float(self._taste(visitor.taste)[index])

    def _past_and_future(self, taste: int) -> tuple[IntArray, IntArray]:
        user, late = int(self._sources[taste // 2]), bool(taste % 2)
        known = self._split.history(user, with_validation=late)
        held_out = (self._split.test[user],) if late else (self._split.validation[user], self._split.test[user])
        return known, np.asarray(held_out, dtype=np.int64)

    def _taste(self, taste: int) -> npt.NDArray[np.float64]:
        """[n_items] relevance, computed once for all visitors who share it."""
        found = self._tastes.get(taste)
        if found is not None:
            self._tastes.move_to_end(taste)
            return found
        behaviour = self._behaviour
        _, future = self._past_and_future(taste)
        shared = self._genres[:, self._genres[future].any(axis=0)].any(axis=1)
        relevances = np.where(shared, behaviour.genre, behaviour.other)
        for item in future:
            relevances[self._audience.nearest(int(item), behaviour.neighbours)] = behaviour.near
        relevances[future] = behaviour.future
        self._tastes[taste] = relevances
        if len(self._tastes) > _KEPT_TASTES:
            self._tastes.popitem(last=False)
        return relevances

    def _dice(self, name: str) -> tuple[float, float, float, float]:
        """Four independent uniforms in (0, 1) that belong to a name."""
        digest = hashlib.blake2b(name.encode(), digest_size=32, key=self._key).digest()
        a, b, c, d = (int.from_bytes(digest[i : i + 6], "big") for i in (0, 8, 16, 24))
        return (a + 0.5) / 2**48, (b + 0.5) / 2**48, (c + 0.5) / 2**48, (d + 0.5) / 2**48


class Audience:
    """Which training users met which items, for the nearest items by the cosine of their audiences."""

    def __init__(self, split: Split) -> None:
        self._histories = split.train
        items = np.concatenate(split.train)
        users = np.repeat(np.arange(len(split.train)), [history.shape[0] for history in split.train])
        order = np.argsort(items, kind="stable")
        self._counts = np.bincount(items, minlength=split.n_items)
        self._users = np.split(users[order], np.cumsum(self._counts)[:-1])

    def nearest(self, item: int, n: int) -> IntArray:
        """At most n items, nearest first, that share a user with `item`, which is not among them."""
        audience = self._users[item]
        if not audience.shape[0]:
            return np.empty(0, dtype=np.int64)
        together = np.bincount(
            np.concatenate([self._histories[user] for user in audience]), minlength=len(self._counts)
        )
        together[item] = 0
        cosine = together / np.sqrt(np.maximum(self._counts, 1))
        best = np.argsort(-cosine, kind="stable")[:n]
        return best[cosine[best] > 0]


def _genre_matrix(split: Split) -> npt.NDArray[np.bool_]:
    """[n_items, n_genres]; no columns for a data set without genres."""
    words = sorted({word for genres in split.interactions.genres for word in genres})
    column = {word: i for i, word in enumerate(words)}
    matrix = np.zeros((split.n_items, len(words)), dtype=np.bool_)
    for item, genres in enumerate(split.interactions.genres):
        matrix[item, [column[word] for word in genres]] = True
    return matrix
