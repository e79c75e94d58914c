"""Shown items with what came of them, as flat arrays: what a model is post-trained on."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.context_tokens import newest, side_by_side
from model.data import FloatArray, IntArray
from model.errors import ModelError
from model.gbpo import Feedback
from model.reward import advantages


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Rows of different lengths one after the other: row i is values[start[i] : start[i + 1]]."""

    values: Tensor
    start: Tensor

    def __len__(self) -> int:
        return self.start.shape[0] - 1

    def newest(self, rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The last `most` values of each of the rows, the last one first: see `context_tokens.newest`."""
        values, valid = newest(self.values, self.start[rows], self.start[rows + 1], most)
        return values.long(), valid


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """n shown items of r slates; what is known of the user is a slate's.

    history, liked: r rows of catalogue indices, each oldest first; features: r rows of buckets of the profile;
    slate [n], item [n]: indices; old_log_prob [n] under the policy that showed the item, NaN where that is unknown;
    score [n]: engagement q, NaN without anything to compare with; disliked [n].
    """

    history: Ragged
    liked: Ragged
    features: Ragged
    slate: IntArray
    item: npt.NDArray[np.int32]
    old_log_prob: FloatArray
    score: FloatArray
    disliked: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.item.shape[0])

    @property
    def slates(self) -> int:
        """How many requests the items come from."""
        return len(self.history)

    def batch(self, rows: Tensor, codes: Tensor, context_len: int, positive_len: int = 0) -> Feedback:
        """The items `rows` [B] as one batch, judged against each other; codes [items, levels] of the catalogue.

        The newest `context_len` items of each history are its context, and behind them, for a model with that pathway,
        the newest `positive_len` liked ones, as `model.train_samples` has them.
        """
        chosen, device = rows.numpy(), codes.device
        slate = torch.from_numpy(self.slate)[rows]
        liked = self.liked.newest(slate, positive_len) if positive_len else None
        features = None
        if len(self.features.values):
            buckets, there = self.features.newest(slate, int(self.features.start.diff().max()))
            features = buckets.where(there, -1)
        known = side_by_side(self.history.newest(slate, context_len), liked, context_len, features).to(device)
        return Feedback(
            history=codes[known.items],
            valid=known.valid,
            shown=codes[torch.from_numpy(self.item[chosen].astype(np.int64)).to(device)],
            old_log_prob=torch.from_numpy(self.old_log_prob[chosen].astype(np.float32)).to(device),
            advantage=advantages(self.score[chosen], self.disliked[chosen]).to(device),
            places=known.places,
            features=known.features,
        )


class _Rows:
    """Collects a `Ragged`."""

    def __init__(self) -> None:
        self._values, self._start = array("i"), array("q", [0])

    def add(self, row: Sequence[int]) -> None:
        self._values.extend(row)
        self._start.append(len(self._values))

    def __len__(self) -> int:
        return len(self._start) - 1

    def ragged(self) -> Ragged:
        values, start = np.array(self._values, dtype=np.int32), np.array(self._start, dtype=np.int64)
        return Ragged(torch.from_numpy(values), torch.from_numpy(start))


class LessonBook:
    """Collects lessons slate by slate, 29 bytes an item and 4 for each number of what is known of a slate's user."""

    def __init__(self) -> None:
        self._history, self._liked, self._features = _Rows(), _Rows(), _Rows()
        self._slate, self._item, self._disliked = array("q"), array("i"), array("b")
        self._old_log_prob, self._score = array("d"), array("d")

    def open(self, history: Sequence[int], liked: Sequence[int] = (), features: Sequence[int] = ()) -> None:
        """Begin a slate that was shown after these items, to somebody who liked those, both oldest first, and whose
        profile has these buckets."""
        for rows, row in ((self._history, history), (self._liked, liked), (self._features, features)):
            rows.add(row)

    def add(self, item: int, old_log_prob: float | None, score: float, disliked: bool) -> None:
        """A shown item of the slate begun last. Raises ModelError when there is none."""
        if not self._history:
            raise ModelError("item: belongs to no slate; open one first")
        self._slate.append(len(self._history) - 1)
        self._item.append(item)
        self._old_log_prob.append(math.nan if old_log_prob is None else old_log_prob)
        self._score.append(score)
        self._disliked.append(disliked)

    def lessons(self) -> Lessons:
        """What was collected so far."""
        return Lessons(
            history=self._history.ragged(),
            liked=self._liked.ragged(),
            features=self._features.ragged(),
            slate=np.array(self._slate, dtype=np.int64),
            item=np.array(self._item, dtype=np.int32),
            old_log_prob=np.array(self._old_log_prob, dtype=np.float64),
            score=np.array(self._score, dtype=np.float64),
            disliked=np.array(self._disliked, dtype=np.bool_),
        )
