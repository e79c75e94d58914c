"""Training positions of a split as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.data import IntArray, Interactions
from model.split import Split


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """All positions of all histories as flat arrays: no history is copied.

    items [n]: the items of all users one after the other; start [n]: where the user's history begins.
    Sample p has items[p] as target and items[start[p] : p] as history, empty for a user's first item.
    instant [n]: a number that neighbours share when one user met them at one time; it rises along the array.
    """

    items: Tensor
    start: Tensor
    instant: Tensor

    @classmethod
    def of(cls, split: Split) -> Samples:
        """Every training item of every user is a target once."""
        return cls._joined(split, range(len(split.train)), split.train)

    @classmethod
    def with_validation(cls, split: Split) -> tuple[Samples, Tensor]:
        """The same with each evaluated user's validation item at the end, and those items' samples [users]."""
        users = split.evaluated_users().tolist()
        histories = [split.history(user, with_validation=True) for user in users]
        ends = np.cumsum([history.shape[0] for history in histories])
        return cls._joined(split, users, histories), torch.from_numpy(ends - 1)

    @classmethod
    def _joined(cls, split: Split, users: Sequence[int], histories: Sequence[IntArray]) -> Samples:
        lengths = np.array([history.shape[0] for history in histories])
        begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        items = np.concatenate(histories)
        instant = _instants(split.interactions, np.repeat(np.array(users), lengths), items)
        return cls(torch.from_numpy(items), torch.from_numpy(np.repeat(begin, lengths)), torch.from_numpy(instant))

    def __len__(self) -> int:
        return self.items.shape[0]

    def reordered(self, generator: torch.Generator) -> Samples:
        """The same histories with the items of each instant in a random order among themselves.

        Logs often stamp a page of items with the one time at which it was sent (half of all neighbours in
        MovieLens-100K); the order within a page is the file's then, and nothing to learn.
        """
        drawn = torch.rand(len(self), generator=generator).argsort()
        drawn = drawn[self.instant[drawn].argsort(stable=True)]
        return replace(self, items=self.items[drawn])

    def windows(self, sample: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Samples [B] -> (items [B, N] newest first, valid [B, N]); N is at most `length`."""
        back = sample[:, None] - 1 - torch.arange(length)
        valid = back >= self.start[sample][:, None]
        longest = max(1, int(valid.sum(1).max()))
        back, valid = back[:, :longest], valid[:, :longest]
        return self.items[back.clamp_min(0)], valid


def _instants(interactions: Interactions, user: IntArray, item: IntArray) -> IntArray:
    """Numbers [n], rising where the user or the time of the first interaction of user [n] with item [n] changes."""
    n_items = len(interactions.items)
    pairs, first = np.unique(interactions.user * n_items + interactions.item, return_index=True)  # rows lie by time
    time = interactions.timestamp[first[np.searchsorted(pairs, user * n_items + item)]]
    changes = np.ones(user.shape[0], dtype=np.int64)
    changes[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    return changes.cumsum()
