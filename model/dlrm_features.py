"""What a traditional ranker is told of a user and an item at some moment: counters, sums and times as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data import FloatArray, IntArray, Interactions
from model.split import Split

DENSE = (
    "timestamp_s",
    "user_events",
    "user_rating_sum",
    "s_since_user_event",
    "item_events",
    "item_rating_sum",
    "s_since_item_event",
)
CATEGORIES = ("user", "item", "first_genre", "hour_utc")


@dataclass(frozen=True, slots=True, eq=False)
class Impressions:
    """Items shown: dense [n, DENSE] unscaled, categories [n, CATEGORIES], clicked [n] of 0 and 1."""

    dense: FloatArray
    categories: IntArray
    clicked: npt.NDArray[np.float32]


class FeatureLog:
    """The state of every user and item before each interaction; sums count 1 where the data has no value."""

    def __init__(self, interactions: Interactions) -> None:
        self._of = interactions
        genres = {
            name: index + 1 for index, name in enumerate(sorted({word for row in interactions.genres for word in row}))
        }
        self._genre = np.array([genres[row[0]] if row else 0 for row in interactions.genres], dtype=np.int64)
        value = np.nan_to_num(interactions.value, nan=1.0)
        self._users = _Past(interactions.user, interactions.timestamp, value)
        self._items = _Past(interactions.item, interactions.timestamp, value)
        self.cardinalities = (len(interactions.users), len(interactions.items), len(genres) + 1, 24)

    def impressions(self, users: IntArray, items: IntArray, rows: IntArray, clicked: IntArray) -> Impressions:
        """Each item as shown to the user at the time of that row of the interactions, knowing only earlier rows."""
        now = self._of.timestamp[rows]
        dense = np.stack([now, *self._users.before(users, rows, now), *self._items.before(items, rows, now)], axis=1)
        hour = (now // 3600 % 24).astype(np.int64)
        categories = np.stack([users, items, self._genre[items], hour], axis=1)
        return Impressions(dense, categories, clicked.astype(np.float32))


class _Past:
    """Running totals of one kind of owner, looked up by binary search."""

    def __init__(self, owner: IntArray, timestamp: FloatArray, value: FloatArray) -> None:
        self._n = owner.shape[0]
        order = np.argsort(owner, kind="stable")
        self._keys = owner[order] * self._n + order
        self._time = timestamp[order]
        self._sums = np.concatenate([[0.0], np.cumsum(value[order])])

    def before(self, owner: IntArray, rows: IntArray, now: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(events, sum of values, seconds since the last event or 0) of each owner before that row."""
        begin = np.searchsorted(self._keys, owner * self._n)
        end = np.searchsorted(self._keys, owner * self._n + rows)
        count = end - begin
        since = np.where(count > 0, now - self._time[np.maximum(end, 1) - 1], 0.0)
        return count.astype(np.float64), self._sums[end] - self._sums[begin], since


def training_impressions(log: FeatureLog, split: Split, negatives: int, rng: np.random.Generator) -> Impressions:
    """Every interaction but the held-out items, each with `negatives` items drawn evenly at the same moment."""
    of = split.interactions
    kept = (of.item != split.validation[of.user]) & (of.item != split.test[of.user])
    return _with_negatives(log, split, np.flatnonzero(kept), negatives, rng)


def heldout_impressions(log: FeatureLog, split: Split, negatives: int, rng: np.random.Generator) -> Impressions:
    """Each user's test item at its moment, among `negatives` drawn ones."""
    of = split.interactions
    return _with_negatives(log, split, np.flatnonzero(of.item == split.test[of.user]), negatives, rng)


def _with_negatives(
    log: FeatureLog, split: Split, rows: IntArray, negatives: int, rng: np.random.Generator
) -> Impressions:
    """Drawn items that the user has met at any time are left out: they are no negatives."""
    of, n_items = split.interactions, split.n_items
    met = np.unique(of.user * n_items + of.item)
    again = np.repeat(rows, negatives)
    drawn = rng.integers(n_items, size=again.shape[0])
    fresh = ~np.isin(of.user[again] * n_items + drawn, met)
    every = np.concatenate([rows, again[fresh]])
    items = np.concatenate([of.item[rows], drawn[fresh]])
    clicked = (np.arange(every.shape[0]) < rows.shape[0]).astype(np.int64)
    return log.impressions(of.user[every], items, every, clicked)
