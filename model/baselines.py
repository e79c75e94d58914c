"""What every model has to beat: popularity, item-to-item neighbours and a linear autoencoder, on the same split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data import IntArray
from model.errors import ModelError
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
    seen = _user_item(split)
    together = seen.T @ seen
    counts = np.diag(together).copy()
    cosine = together / np.sqrt(np.outer(counts, counts)).clip(min=1e-9)
    np.fill_diagonal(cosine, 0.0)
    keep = min(neighbours, n_items - 1)
    threshold = np.partition(cosine, n_items - keep, axis=1)[:, n_items - keep]
    cosine[cosine < threshold[:, None]] = 0.0
    return LinearRanker(np.ascontiguousarray(cosine.T), _tie_breaker(counts))


def ease(split: Split, ridge: float = 100.0) -> LinearRanker:
    """EASE: the item-to-item weights of least squared error, ridge-regularised, none from an item to itself.

    Closed form: with P = (X'X + ridge·I)^-1 of the user-item matrix X, B[h, item] = -P[h, item] / P[item, item] and
    B[item, item] = 0 (Steck, WWW 2019, arXiv 1905.03375, equation 8). Cost: one inverse of [items, items] in float64.
    Popularity breaks ties far below any weight. Raises ModelError unless ridge is positive.
    """
    if not ridge > 0.0:
        raise ModelError(f"ridge: must be positive, got {ridge}")
    seen = _user_item(split).astype(np.float64)
    gram = seen.T @ seen
    counts = np.diag(gram).astype(np.float32)
    inverse = np.linalg.inv(gram + ridge * np.eye(split.n_items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return LinearRanker(weights.astype(np.float32), _tie_breaker(counts))


def _user_item(split: Split) -> npt.NDArray[np.float32]:
    """[users, items]: 1 where the user has the item among the training ones."""
    users = np.repeat(np.arange(len(split.train)), [history.shape[0] for history in split.train])
    seen = np.zeros((len(split.train), split.n_items), dtype=np.float32)
    seen[users, np.concatenate(split.train)] = 1.0
    return seen


def _tie_breaker(counts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    prior: npt.NDArray[np.float32] = (counts * (1e-6 / max(1.0, float(counts.max())))).astype(np.float32)
    return prior


def _counts(split: Split) -> IntArray:
    return np.bincount(np.concatenate(split.train), minlength=split.n_items)
