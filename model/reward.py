"""Duration-aware reward: how much a user liked an item, judged against the user's own items of like duration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data import FloatArray
from model.errors import ModelError

TOP_SHARE = 0.25
"""The share of a batch that counts as positive."""


@dataclass(frozen=True, slots=True)
class DurationBuckets:
    """Durations of like size: bucket floor(log_beta(d + eps)) (arXiv 2508.20900, section 3.1.1).

    The paper leaves beta open; 2 doubles the duration from one bucket to the next. Raises ModelError naming the field.
    """

    beta: float = 2.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta > 1.0):
            raise ModelError(f"beta: must be above 1, got {self.beta!r}")
        if not (math.isfinite(self.eps) and self.eps > 0.0):
            raise ModelError(f"eps: must be positive, got {self.eps!r}")

    def of(self, duration_s: FloatArray) -> npt.NDArray[np.int64]:
        """Durations [n] in seconds, none negative -> bucket numbers [n]."""
        return np.floor(np.log(_seconds("duration_s", duration_s) + self.eps) / math.log(self.beta)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class WatchHistory:
    """What one user watched: durations and playing times [n], in seconds. Raises ModelError naming the field."""

    duration_s: FloatArray
    played_s: FloatArray

    def __post_init__(self) -> None:
        _seconds("duration_s", self.duration_s)
        _seconds("played_s", self.played_s)
        if self.duration_s.shape != self.played_s.shape:
            raise ModelError(f"played_s: {self.played_s.shape} does not fit durations {self.duration_s.shape}")


def engagement(
    history: WatchHistory,
    duration_s: FloatArray,
    played_s: FloatArray,
    buckets: DurationBuckets | None = None,
) -> FloatArray:
    """The score q [n] of items that a user was shown: the empirical percentile rank of the playing time.

    q = |{p in P : p <= played}| / |P|, where P are the playing times of the user's history in the item's duration
    bucket. NaN where the bucket is empty: there is nothing to compare with, and such an item is never positive.
    """
    buckets = buckets or DurationBuckets()
    known, asked = buckets.of(history.duration_s), buckets.of(duration_s)
    played = _seconds("played_s", played_s)
    if played.shape != asked.shape:
        raise ModelError(f"played_s: {played.shape} does not fit durations {asked.shape}")
    out = np.full(asked.shape, np.nan)
    for bucket in np.unique(asked):
        peers = np.sort(history.played_s[known == bucket])
        if peers.shape[0]:
            here = asked == bucket
            out[here] = np.searchsorted(peers, played[here], side="right") / peers.shape[0]
    return out


def threshold(scores: Sequence[float] | FloatArray | Tensor, share: float = TOP_SHARE) -> float:
    """The batch's tau: the largest score that more than `share` of the scored items reach, or inf without any.

    Sorted downwards, it is the value at position floor(share·n), counted from 0, so that without ties exactly
    floor(share·n) items lie above it, which is what the reward asks for. NaN scores are left out. The paper says
    "the 25 % quantile after sorting in descending order" and leaves interpolation open; there is none here.
    """
    if not 0.0 < share < 1.0:
        raise ModelError(f"share: must be in (0, 1), got {share!r}")
    known = np.asarray(scores, dtype=np.float64)
    known = np.sort(known[~np.isnan(known)])[::-1]
    return float(known[math.floor(share * known.shape[0])]) if known.shape[0] else math.inf


def advantages(scores: FloatArray, disliked: npt.NDArray[np.bool_], share: float = TOP_SHARE) -> Tensor:
    """Scores q [n] and explicit dislikes [n] of a batch -> advantages [n] (float32), not normalised.

    +1 where q lies above the batch's tau and there was no dislike, -1 where there was one, else 0
    (arXiv 2508.20900, section 3.1.1).
    """
    if scores.shape != disliked.shape:
        raise ModelError(f"disliked: {disliked.shape} does not fit scores {scores.shape}")
    liked = scores > threshold(scores, share)  # NaN is above nothing
    return torch.from_numpy(np.where(disliked, -1.0, np.where(liked, 1.0, 0.0)).astype(np.float32))


def _seconds(name: str, values: FloatArray) -> FloatArray:
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ModelError(f"{name}: must be one row of finite numbers that are not negative")
    return values
