"""Train, validation and test by time: each user's last new item is the test, the one before it the validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.data import IntArray, Interactions
from model.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Leave-one-out over the whole catalogue.

    train: per user, item indices in time order; validation, test [users]: item index, or -1 for a user with
    fewer than three distinct items, who is only trained on. Each item counts once per user, at its first time:
    the objective and the evaluation are about new items. Other users' later interactions stay in the training
    set, as is usual for leave-one-out.
    """

    interactions: Interactions
    train: tuple[IntArray, ...]
    validation: IntArray
    test: IntArray

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


def leave_one_out(interactions: Interactions) -> Split:
    """Split by time per user. Raises DataError when no user has three distinct items."""
    order = np.argsort(interactions.user, kind="stable")
    items, users = interactions.item[order], interactions.user[order]
    bounds = np.searchsorted(users, np.arange(len(interactions.users) + 1))
    train: list[IntArray] = []
    validation = np.full(len(interactions.users), -1, dtype=np.int64)
    test = validation.copy()
    for user in range(len(interactions.users)):
        own = items[bounds[user] : bounds[user + 1]]
        distinct = own[np.sort(np.unique(own, return_index=True)[1])]
        if distinct.shape[0] >= 3:
            validation[user], test[user] = distinct[-2], distinct[-1]
            distinct = distinct[:-2]
        train.append(distinct)
    if not (test >= 0).any():
        raise DataError("no user has three distinct items: nothing to hold out for validation and test")
    return Split(interactions, tuple(train), validation, test)
