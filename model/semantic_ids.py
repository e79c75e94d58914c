"""Semantic ids: residual k-means turns an item vector into one code per level, unique for every item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.errors import ModelError
from model.kmeans import kmeans, nearest


@dataclass(frozen=True, slots=True)
class TokenizerQuality:
    """What the paper reports of a tokenizer.

    reconstruction: mean squared distance of an item to its summed centroids, over the mean squared distance to
    the mean item (0 is perfect); utilisation and entropy_bits: per level, share of codes in use and entropy of
    their use; collision_rate: share of items whose own triple was taken and had to move.
    """

    reconstruction: float
    utilisation: tuple[float, ...]
    entropy_bits: tuple[float, ...]
    collision_rate: float


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
        if torch.unique(self.codes, dim=0).shape[0] != self.codes.shape[0]:
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
    vectors: npt.NDArray[np.float32], levels: int, codebook_size: int, seed: int
) -> tuple[Tokenizer, TokenizerQuality]:
    """Cluster, subtract the centroid, repeat (RQ-Kmeans); then give every item a triple of its own.

    vectors [items, D]. Raises ModelError when the codes cannot tell so many items apart.
    """
    points = torch.from_numpy(np.ascontiguousarray(vectors))
    if points.shape[0] > codebook_size**levels:
        raise ModelError(f"codebook_size: {codebook_size}^{levels} ids cannot tell {points.shape[0]} items apart")
    generator = torch.Generator().manual_seed(seed)
    residual, codebooks, columns = points, [], []
    for _ in range(levels):
        clusters = kmeans(residual, codebook_size, generator)
        codebooks.append(clusters.centroids)
        columns.append(clusters.labels)
        residual = residual - clusters.centroids[clusters.labels]
    wanted, centroids = torch.stack(columns, dim=1), torch.stack(codebooks)
    codes = resolve_collisions(points, wanted, centroids)
    quality = _quality(points, residual, codes, wanted, codebook_size)
    return Tokenizer(codes, centroids), quality


def resolve_collisions(points: Tensor, wanted: Tensor, centroids: Tensor) -> Tensor:
    """Give each item a triple of its own, moving as few items as little as can be.

    In a group of items that want one triple, the best-fitting item keeps it. Each other one takes the free last
    code nearest to its residual; where its prefix has none left, the nearest second-to-last code that has, and
    so on upwards. points [n, D], wanted [n, levels] -> codes [n, levels].
    """
    taken: set[tuple[int, ...]] = set()
    codes = wanted.clone()
    _, misfit = _residuals(points, wanted, centroids)
    losers: list[int] = []
    for item in torch.argsort(misfit, stable=True).tolist():
        key = tuple(wanted[item].tolist())
        if key in taken:
            losers.append(item)
        else:
            taken.add(key)
    for item in losers:
        free = _nearest_free(points[item], wanted[item].tolist(), centroids, taken)
        taken.add(free)
        codes[item] = torch.tensor(free)
    return codes


def _residuals(points: Tensor, codes: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    rest = points - sum(centroids[level][codes[:, level]] for level in range(centroids.shape[0]))
    return rest, rest.square().sum(-1)


def _nearest_free(point: Tensor, wanted: list[int], centroids: Tensor, taken: set[tuple[int, ...]]) -> tuple[int, ...]:
    """The free id that keeps the longest prefix of `wanted`, then follows the nearest centroids."""
    levels = len(wanted)
    for keep in range(levels - 1, -1, -1):
        found = _descend(point, tuple(wanted[:keep]), centroids, taken)
        if found is not None:
            return found
    raise ModelError("codebook_size: every semantic id is taken")


def _descend(
    point: Tensor, prefix: tuple[int, ...], centroids: Tensor, taken: set[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Depth first, nearest code first."""
    level = len(prefix)
    if level == centroids.shape[0]:
        return None if prefix in taken else prefix
    residual = point - sum((centroids[i][code] for i, code in enumerate(prefix)), torch.zeros_like(point))
    order = (centroids[level] - residual).square().sum(-1).argsort(stable=True).tolist()
    for code in order:
        found = _descend(point, (*prefix, code), centroids, taken)
        if found is not None:
            return found
    return None


def _quality(points: Tensor, residual: Tensor, codes: Tensor, wanted: Tensor, codebook_size: int) -> TokenizerQuality:
    spread = (points - points.mean(0)).square().sum(-1).mean()
    shares = [torch.bincount(codes[:, level], minlength=codebook_size).double() for level in range(codes.shape[1])]
    shares = [share / share.sum() for share in shares]
    return TokenizerQuality(
        reconstruction=float(residual.square().sum(-1).mean() / spread.clamp_min(1e-12)),
        utilisation=tuple(float((share > 0).double().mean()) for share in shares),
        entropy_bits=tuple(float(-(share * share.clamp_min(1e-300).log2()).sum()) for share in shares),
        collision_rate=float((codes != wanted).any(1).double().mean()),
    )
