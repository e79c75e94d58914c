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

from model.data import FloatArray, IntArray
from model.errors import ModelError
from model.gbpo import Feedback
from model.reward import advantages


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """n shown items of r slates; a slate's items share one history.

    history [m]: catalogue indices of all slates' histories one after the other, each oldest first; start [r + 1]:
    where they begin; slate [n], item [n]: indices; old_log_prob [n] under the policy that showed the item, NaN where
    that is unknown; score [n]: engagement q, NaN without anything to compare with; disliked [n].
    """

    history: npt.NDArray[np.int32]
    start: IntArray
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
        return int(self.start.shape[0]) - 1

    def batch(self, rows: Tensor, codes: Tensor, context_len: int) -> Feedback:
        """The items `rows` [B] as one batch, judged against each other; codes [items, levels] of the catalogue.

        The newest `context_len` items of each history are its context.
        """
        chosen = rows.numpy()
        slate = self.slate[chosen]
        back = self.start[slate + 1][:, None] - 1 - np.arange(context_len)
        valid = back >= self.start[slate][:, None]
        longest = max(1, int(valid.sum(1).max(initial=0)))
        back, valid = back[:, :longest], valid[:, :longest]
        newest = np.where(valid, self.history[np.maximum(back, 0)], 0) if len(self.history) else np.zeros_like(back)
        device = codes.device
        return Feedback(
            history=codes[torch.from_numpy(newest.astype(np.int64)).to(device)],
            valid=torch.from_numpy(valid).to(device),
            shown=codes[torch.from_numpy(self.item[chosen].astype(np.int64)).to(device)],
            old_log_prob=torch.from_numpy(self.old_log_prob[chosen].astype(np.float32)).to(device),
            advantage=advantages(self.score[chosen], self.disliked[chosen]).to(device),
        )


class LessonBook:
    """Collects lessons slate by slate, 29 bytes an item and 4 for each item of a slate's history."""

    def __init__(self) -> None:
        self._history, self._start = array("i"), array("q", [0])
        self._slate, self._item, self._disliked = array("q"), array("i"), array("b")
        self._old_log_prob, self._score = array("d"), array("d")

    def open(self, history: Sequence[int]) -> None:
        """Begin a slate that was shown after these items, oldest first."""
        self._history.extend(history)
        self._start.append(len(self._history))

    def add(self, item: int, old_log_prob: float | None, score: float, disliked: bool) -> None:
        """A shown item of the slate begun last. Raises ModelError when there is none."""
        if len(self._start) == 1:
            raise ModelError("item: belongs to no slate; open one first")
        self._slate.append(len(self._start) - 2)
        self._item.append(item)
        self._old_log_prob.append(math.nan if old_log_prob is None else old_log_prob)
        self._score.append(score)
        self._disliked.append(disliked)

    def lessons(self) -> Lessons:
        """What was collected so far."""
        return Lessons(
            history=np.array(self._history, dtype=np.int32),
            start=np.array(self._start, dtype=np.int64),
            slate=np.array(self._slate, dtype=np.int64),
            item=np.array(self._item, dtype=np.int32),
            old_log_prob=np.array(self._old_log_prob, dtype=np.float64),
            score=np.array(self._score, dtype=np.float64),
            disliked=np.array(self._disliked, dtype=np.bool_),
        )
