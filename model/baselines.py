"""What every model has to beat: popularity and item-to-item nearest neighbours, on the same split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data import IntArray
from model.split import Split


@dataclass(frozen=True, slots=True, eq=False)
class LinearRanker:
    """score(item) = prior + sum of weights[h, item] over the history h; higher first, ties to the lower index."""

    weights: npt.NDArray[np.float32] | None
    prior: npt.NDArray[np.float32]

    def __call__(self, histories: list[IntArray], k: int) -> IntArray:
        out = np.full((len(histories), k), -1, dtype=np.int64)
        for row, history in enumerate(histories):
            scores = self.prior.copy()
            if self.weights is not None and history.shape[0]:
                scores += self.weights[history].sum(axis=0)
            scores[history] = -np.inf
            best = np.argsort(-scores, kind="stable")[:k]
            best = best[np.isfinite(scores[best])]
            out[row, : best.shape[0]] = best
        return out


def popularity(split: Split) -> LinearRanker:
    """Items by their number of training users."""
    return LinearRanker(None, _counts(split).astype(np.float32))


def item_knn(split: Split, neighbours: int = 20) -> LinearRanker:
    """Cosine of the items' training user sets; each item keeps its nearest neighbours.

    A score sums over the candidate's own neighbours in the history, as in the classical item-based method.
    Popularity breaks ties far below any similarity.
    """
    n_items = split.n_items
    users = np.repeat(np.arange(len(split.train)), [history.shape[0] for history in split.train])
    seen = np.zeros((len(split.train), n_items), dtype=np.float32)
    seen[users, np.concatenate(split.train)] = 1.0
    together = seen.T @ seen
    counts = np.diag(together).copy()
    cosine = together / np.sqrt(np.outer(counts, counts)).clip(min=1e-9)
    np.fill_diagonal(cosine, 0.0)
    keep = min(neighbours, n_items - 1)
    threshold = np.partition(cosine, n_items - keep, axis=1)[:, n_items - keep]
    cosine[cosine < threshold[:, None]] = 0.0
    prior = (counts * (1e-6 / max(1.0, float(counts.max())))).astype(np.float32)
    return LinearRanker(np.ascontiguousarray(cosine.T), prior)


def _counts(split: Split) -> IntArray:
    return np.bincount(np.concatenate(split.train), minlength=split.n_items)
