"""Item vectors for the tokenizer, from training histories and genres only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from model.split import Split

Matrix = npt.NDArray[np.float32]
DENSE_ITEMS = 400
"""Up to this many items the whole SVD is as fast as the truncated one, and never fails to converge."""


def cooccurrence(histories: Sequence[npt.NDArray[np.int64]], n_items: int, window: int) -> sp.csr_array:
    """Symmetric counts of item pairs at most `window` steps apart in one history, each weighted 1/distance."""
    total = sp.csr_array((n_items, n_items), dtype=np.float64)
    for gap in range(1, window + 1):
        pairs = [(h[:-gap], h[gap:]) for h in histories if h.shape[0] > gap]
        if not pairs:
            break
        left = np.concatenate([pair[0] for pair in pairs])
        right = np.concatenate([pair[1] for pair in pairs])
        weight = np.full(left.shape[0], 1.0 / gap)
        total = total + sp.coo_array((weight, (left, right)), shape=(n_items, n_items)).tocsr()
    return (total + total.T).tocsr()


def ppmi(counts: sp.csr_array) -> sp.csr_array:
    """Positive pointwise mutual information: max(0, log(p(a, b) / (p(a)·p(b)))) of symmetric counts."""
    mass = np.asarray(counts.sum(axis=1)).ravel()
    grand = mass.sum()
    pairs = counts.tocoo()
    ratio = pairs.data * grand / (mass[pairs.row] * mass[pairs.col])
    keep = ratio > 1.0
    kept = (np.log(ratio[keep]), (pairs.row[keep], pairs.col[keep]))
    return sp.coo_array(kept, shape=counts.shape).tocsr()


def genre_matrix(genres: Sequence[Sequence[str]]) -> Matrix:
    """Multi-hot rows of unit length, columns in alphabetical order; [items, 0] where no genre is known."""
    names = sorted({name for words in genres for name in words})
    column = {name: index for index, name in enumerate(names)}
    out = np.zeros((len(genres), len(names)), dtype=np.float32)
    for row, words in enumerate(genres):
        for name in words:
            out[row, column[name]] = 1.0
    return _unit(out)


def _unit(rows: Matrix) -> Matrix:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Matrix = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0.0)
    return unit


def _leading_directions(information: sp.csr_array, rank: int, seed: int) -> Matrix:
    """U·sqrt(S) of the truncated SVD: dense for a small catalogue, Lanczos from a seeded start for a large one."""
    n_items = information.shape[0]
    if information.nnz == 0:
        return np.zeros((n_items, rank), dtype=np.float32)
    if n_items <= DENSE_ITEMS:
        left, singular, _ = np.linalg.svd(information.toarray())
    else:
        start = np.random.default_rng(seed).standard_normal(n_items)
        left, singular, _ = svds(information, k=rank, v0=start)
    scaled: Matrix = (left[:, :rank] * np.sqrt(singular[:rank])).astype(np.float32)
    return scaled


def item_embeddings(split: Split, dim: int = 48, window: int = 10, genre_weight: float = 0.5, seed: int = 0) -> Matrix:
    """[items, dim + genres]: truncated SVD of the windowed PPMI matrix, unit rows, beside weighted genres.

    Items without a training interaction have genres alone.
    """
    n_items = split.n_items
    information = ppmi(cooccurrence(split.train, n_items, window))
    behaviour = _unit(_leading_directions(information, min(dim, n_items - 1), seed))
    return np.concatenate([behaviour, genre_weight * genre_matrix(split.interactions.genres)], axis=1)
