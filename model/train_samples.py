"""Training positions of a split as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.data import IntArray
from model.split import Split


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """All positions of all histories as flat arrays: no history is copied.

    items [n]: the items of all users one after the other; start [n]: where the user's history begins.
    Sample p has items[p] as target and items[start[p] : p] as history, empty for a user's first item.
    """

    items: Tensor
    start: Tensor

    @classmethod
    def of(cls, split: Split) -> Samples:
        """Every training item of every user is a target once."""
        return cls._joined(split.train)

    @classmethod
    def with_validation(cls, split: Split) -> tuple[Samples, Tensor]:
        """The same with each evaluated user's validation item at the end, and those items' samples [users]."""
        histories = [split.history(int(user), with_validation=True) for user in split.evaluated_users()]
        ends = np.cumsum([history.shape[0] for history in histories])
        return cls._joined(histories), torch.from_numpy(ends - 1)

    @classmethod
    def _joined(cls, histories: Sequence[IntArray]) -> Samples:
        lengths = np.array([history.shape[0] for history in histories])
        begin = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return cls(torch.from_numpy(np.concatenate(histories)), torch.from_numpy(np.repeat(begin, lengths)))

    def __len__(self) -> int:
        return self.items.shape[0]

    def windows(self, sample: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Samples [B] -> (items [B, N] newest first, valid [B, N]); N is at most `length`."""
        back = sample[:, None] - 1 - torch.arange(length)
        valid = back >= self.start[sample][:, None]
        longest = max(1, int(valid.sum(1).max()))
        back, valid = back[:, :longest], valid[:, :longest]
        return self.items[back.clamp_min(0)], valid
