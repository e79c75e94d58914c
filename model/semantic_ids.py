"""Semantic ids: residual k-means turns an item vector into one code per level, unique for every item.

`semantic_ids_collisions` keeps ids apart, `semantic_ids_quality` says how good they are, `semantic_ids_artifact` stores
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.errors import ModelError
from model.kmeans import kmeans, nearest
from model.semantic_ids_collisions import radix_keys, resolve_collisions
from model.semantic_ids_quality import TokenizerQuality, measure

__all__ = [
    "Tokenizer",
    "TokenizerQuality",
    "assess",
    "extend_tokenizer",
    "fit_tokenizer",
    "quantise",
    "resolve_collisions",
]


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """codes [items, levels] (int64, no two rows equal) and centroids [levels, K, D] (float32)."""

    codes: Tensor
    centroids: Tensor

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.centroids.ndim != 3 or self.codes.shape[1] != self.centroids.shape[0]:
            raise ModelError(
                f"tokenizer: codes {tuple(self.codes.shape)} do not fit centroids {tuple(self.centroids.shape)}"
            )
        if self.codes.numel() and not 0 <= int(self.codes.min()) <= int(self.codes.max()) < self.codebook_size:
            raise ModelError(f"tokenizer: a code lies outside 0..{self.codebook_size - 1}")
        keys = radix_keys(self.codes, self.codebook_size)
        if torch.unique(keys).shape[0] != self.codes.shape[0]:
            raise ModelError("tokenizer: two items share one semantic id")

    @property
    def n_items(self) -> int:
        """Items with a semantic id."""
        return self.codes.shape[0]

    @property
    def levels(self) -> int:
        """Codes per item."""
        return self.codes.shape[1]

    @property
    def codebook_size(self) -> int:
        """Codes per level."""
        return self.centroids.shape[1]


def quantise(vectors: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code level by level of vectors [n, D]: (codes [n, levels], what is left over [n, D])."""
    residual = vectors
    codes = []
    for level in centroids:
        label, _ = nearest(residual, level)
        residual = residual - level[label]
        codes.append(label)
    return torch.stack(codes, dim=1), residual


def fit_tokenizer(
    vectors: npt.NDArray[np.float32],
    levels: int,
    codebook_size: int,
    seed: int,
    *,
    balanced: bool = False,
    points_per_code: int | None = None,
    max_rounds: int = 50,
    device: torch.device | str = "cpu",
) -> tuple[Tokenizer, TokenizerQuality]:
    """Cluster, subtract the centroid, repeat (RQ-Kmeans, arXiv 2508.20900); then give every item ids of its own.

    vectors [items, D]. balanced, points_per_code, max_rounds: as in `kmeans`; the last two bound the time on millions
    of items. The clustering runs on `device`, the result lives on the CPU. Raises ModelError when the codes cannot
    tell so many items apart, or when a vector is not finite.
    """
    points = torch.from_numpy(np.ascontiguousarray(vectors))
    if not bool(points.isfinite().all()):
        raise ModelError("vectors: an item's vector holds a value that is not finite")
    if points.shape[0] > codebook_size**levels:
        raise ModelError(f"codebook_size: {codebook_size}^{levels} ids cannot tell {points.shape[0]} items apart")
    generator = torch.Generator().manual_seed(seed)
    residual, codebooks, columns = points.to(device), [], []
    for _ in range(levels):
        clusters = kmeans(
            residual, codebook_size, generator, max_rounds, balanced=balanced, points_per_code=points_per_code
        )
        codebooks.append(clusters.centroids.cpu())
        columns.append(clusters.labels.cpu())
        residual = residual - clusters.centroids[clusters.labels]
    wanted, centroids = torch.stack(columns, dim=1), torch.stack(codebooks)
    codes = resolve_collisions(points, wanted, centroids)
    return Tokenizer(codes, centroids), measure(points, wanted, codes, centroids)


def extend_tokenizer(tokenizer: Tokenizer, vectors: npt.NDArray[np.float32]) -> Tokenizer:
    """The tokenizer with new items behind the old ones: no old id changes, no centroid moves.

    vectors [new items, D], made as those of the fit. Each new item gets the id nearest to it that nobody has, so a
    model that knows the codes can rank it at once. Refit when `assess` says that reconstruction or collisions of the
    new items are clearly worse than the old ones'. Raises ModelError when the ids are used up, when D is another, or
    when a vector is not finite.
    """
    points = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    dim = tokenizer.centroids.shape[2]
    if points.ndim != 2 or points.shape[1] != dim:
        raise ModelError(f"vectors: expected [new items, {dim}], got {tuple(points.shape)}")
    if not bool(points.isfinite().all()):
        raise ModelError("vectors: an item's vector holds a value that is not finite")
    if points.shape[0] == 0:
        return tokenizer
    room = tokenizer.codebook_size**tokenizer.levels - tokenizer.n_items
    if points.shape[0] > room:
        raise ModelError(f"vectors: {points.shape[0]} new items, but only {room} semantic ids are left")
    wanted, _ = quantise(points, tokenizer.centroids)
    codes = resolve_collisions(points, wanted, tokenizer.centroids, tokenizer.codes)
    return Tokenizer(torch.cat([tokenizer.codes, codes]), tokenizer.centroids)


def assess(tokenizer: Tokenizer, vectors: npt.NDArray[np.float32]) -> TokenizerQuality:
    """The quality of a tokenizer on the vectors [items, D] of its items, wherever it came from."""
    points = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    if points.shape != (tokenizer.n_items, tokenizer.centroids.shape[2]):
        expected = (tokenizer.n_items, tokenizer.centroids.shape[2])
        raise ModelError(f"vectors: expected {expected}, got {tuple(points.shape)}")
    wanted, _ = quantise(points, tokenizer.centroids)
    return measure(points, wanted, tokenizer.codes, tokenizer.centroids)
