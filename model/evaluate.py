"""HR@K and NDCG@K of one held-out item per user, over the whole catalogue; coverage; legality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data import IntArray
from model.recommender import Recommender
from model.split import Split

Ranker = Callable[[list[IntArray], int], IntArray]
"""(histories of item indices, k) -> the k best unseen items of each [users, k], -1 where none is left."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Means over the evaluated users."""

    hit_rate: float
    ndcg: float
    k: int
    users: int
    coverage: float  # share of the catalogue that was recommended to anyone


def accuracy(ranked: IntArray, targets: IntArray, n_items: int) -> Accuracy:
    """ranked [users, k] and targets [users]. NDCG of one relevant item at rank r (from 0) is 1/log2(r + 2)."""
    hit = ranked == targets[:, None]
    gain: npt.NDArray[np.float64] = 1.0 / np.log2(np.arange(ranked.shape[1]) + 2.0)
    shown = np.unique(ranked[ranked >= 0])
    return Accuracy(
        hit_rate=float(hit.any(axis=1).mean()),
        ndcg=float((hit * gain).sum(axis=1).mean()),
        k=ranked.shape[1],
        users=ranked.shape[0],
        coverage=shown.shape[0] / n_items,
    )


def evaluate(ranker: Ranker, split: Split, k: int = 10, *, validation: bool = False) -> Accuracy:
    """Ask for k items per user and compare with the test item (or the validation item).

    The history is all that precedes the target, seen items are never candidates, and every other item of the
    catalogue is.
    """
    users = split.evaluated_users()
    histories = [split.history(int(user), with_validation=not validation) for user in users]
    targets = (split.validation if validation else split.test)[users]
    return accuracy(ranker(histories, k), targets, split.n_items)


def evaluate_signals(
    recommender: Recommender,
    split: Split,
    k: int = 10,
    beam_width: int | None = None,
    *,
    validation: bool = False,
    batch_size: int = 64,
) -> Accuracy:
    """The same of a recommender that is told all signals: the history, what of it is liked, the profile.

    Equal to `evaluate` for a model without pathways for them.
    """
    users, least = split.evaluated_users(), recommender.config.positive_from
    targets = (split.validation if validation else split.test)[users]
    width = max(k, beam_width or recommender.beam_width)
    out = np.full((users.shape[0], k), -1, dtype=np.int64)
    for begin in range(0, users.shape[0], batch_size):
        batch = users[begin : begin + batch_size].tolist()
        items, _ = recommender.rank(
            [split.signals(user, least, with_validation=not validation) for user in batch], width
        )
        best = items[:, :k].cpu().numpy()
        out[begin : begin + len(batch), : best.shape[1]] = best
    return accuracy(out, targets, split.n_items)


def legality(recommender: Recommender, split: Split, users: int = 64, batch_size: int = 8) -> float:
    """The probability that ids drawn freely, code by code, are an item: the mean over the first `users` evaluated ones.

    What is answered is always an item, for the trie sees to that; this is what the trie has to do. Exact: the sum of
    all items' probabilities, by a beam that holds every prefix, so it is meant for catalogues of some ten thousand.
    """
    asked = split.evaluated_users()[:users].tolist()
    least, total = recommender.config.positive_from, 0.0
    for begin in range(0, len(asked), batch_size):
        batch = [split.signals(user, least, with_validation=True) for user in asked[begin : begin + batch_size]]
        _, scores = recommender.rank(batch, split.n_items, filter_seen=False)
        total += float(scores.double().exp().sum())
    return total / len(asked)


def ranker_of(recommender: Recommender, beam_width: int | None = None, batch_size: int = 64) -> Ranker:
    """A recommender as a ranker over catalogue indices; the split and the checkpoint share their item order."""

    def rank(histories: list[IntArray], k: int) -> IntArray:
        width = max(k, beam_width or recommender.beam_width)
        out = np.full((len(histories), k), -1, dtype=np.int64)
        for begin in range(0, len(histories), batch_size):
            batch = [history.tolist() for history in histories[begin : begin + batch_size]]
            items, _ = recommender.rank(batch, width)
            best = items[:, :k].cpu().numpy()
            out[begin : begin + len(batch), : best.shape[1]] = best
        return out

    return rank
