"""Train, validation and test by time: each user's last new item is the test, the one before it the validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data import FloatArray, IntArray, Interactions
from model.errors import DataError
from model.signals import UserSignals

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Leave-one-out over the whole catalogue.

    train: per user, item indices in time order; validation, test [users]: item index, or -1 for a user with
    fewer than three distinct items, who is only trained on. Each item counts once per user, at its first time:
    the objective and the evaluation are about new items. Other users' later interactions stay in the training
    set, as is usual for leave-one-out. values: per user, the values of the training items and of the validation item,
    each that of the item's first time; empty where nobody asks for them.
    """

    interactions: Interactions
    train: tuple[IntArray, ...]
    validation: IntArray
    test: IntArray
    values: tuple[FloatArray, ...] = ()

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.interactions.items)

    def evaluated_users(self) -> IntArray:
        """Indices of the users with a validation and a test item."""
        return np.flatnonzero(self.test >= 0)

    def history(self, user: int, *, with_validation: bool) -> IntArray:
        """What is known of a user: before the validation item, or before the test item."""
        train = self.train[user]
        if with_validation and self.validation[user] >= 0:
            return np.append(train, self.validation[user])
        return train

    def is_liked(self, user: int, least: float, *, with_validation: bool) -> BoolArray:
        """For each item of the history whether its value is `least` or more; never where no values are known."""
        count = self.history(user, with_validation=with_validation).shape[0]
        if not self.values:
            return np.zeros(count, dtype=np.bool_)
        liked: BoolArray = self.values[user][:count] >= least
        return liked

    def signals(self, user: int, least: float, *, with_validation: bool) -> UserSignals[int]:
        """History, liked items and profile, as a recommender takes them."""
        history, profiles = self.history(user, with_validation=with_validation), self.interactions.profiles
        liked = history[self.is_liked(user, least, with_validation=with_validation)]
        return UserSignals(history.tolist(), liked.tolist(), profiles[user] if profiles else {})


def leave_one_out(interactions: Interactions) -> Split:
    """Split by time per user. Raises DataError when no user has three distinct items."""
    order = np.argsort(interactions.user, kind="stable")
    items, users, values = interactions.item[order], interactions.user[order], interactions.value[order]
    bounds = np.searchsorted(users, np.arange(len(interactions.users) + 1))
    train: list[IntArray] = []
    known: list[FloatArray] = []
    validation = np.full(len(interactions.users), -1, dtype=np.int64)
    test = validation.copy()
    for user in range(len(interactions.users)):
        own = items[bounds[user] : bounds[user + 1]]
        first = np.sort(np.unique(own, return_index=True)[1])
        distinct, value = own[first], values[bounds[user] : bounds[user + 1]][first]
        if distinct.shape[0] >= 3:
            validation[user], test[user] = distinct[-2], distinct[-1]
            distinct, value = distinct[:-2], value[:-1]
        train.append(distinct)
        known.append(value)
    if not (test >= 0).any():
        raise DataError("no user has three distinct items: nothing to hold out for validation and test")
    return Split(interactions, tuple(train), validation, test, tuple(known))
