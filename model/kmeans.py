"""Lloyd's k-means on any torch device, seeded, in memory-bounded chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError

CHUNK = 16384
"""Rows whose distances to all centroids are held at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """centroids [K, D] and the nearest one of every point, labels [n]."""

    centroids: Tensor
    labels: Tensor


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """points [n, D], centroids [K, D] -> (label [n], squared distance [n]); ties go to the lower index."""
    offset = centroids.square().sum(-1)
    labels, distances = [], []
    for start in range(0, points.shape[0], CHUNK):
        chunk = points[start : start + CHUNK]
        distance = offset - 2.0 * (chunk @ centroids.T)
        best = distance.min(dim=1)
        labels.append(best.indices)
        distances.append((best.values + chunk.square().sum(-1)).clamp_min(0.0))
    return torch.cat(labels), torch.cat(distances)


def spread_start(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next start is drawn with probability proportional to its squared distance."""
    n = points.shape[0]
    chosen = [int(torch.randint(n, (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(-1)
    for _ in range(k - 1):
        weights = distance.double().cumsum(0)
        if not float(weights[-1]) > 0.0:
            draw = int(torch.randint(n, (1,), generator=generator))
        else:
            level = torch.rand(1, generator=generator, dtype=torch.float64).to(weights) * weights[-1]
            draw = min(int(torch.searchsorted(weights, level)), n - 1)
        chosen.append(draw)
        distance = torch.minimum(distance, (points - points[draw]).square().sum(-1))
    return points[chosen].clone()


def kmeans(points: Tensor, k: int, generator: torch.Generator, max_rounds: int = 50) -> Clusters:
    """Cluster points [n, D] into k groups; a group that runs empty restarts at the worst-fitted point.

    `generator` lives on the CPU, so that CPU and GPU draw the same starts. Raises ModelError without points.
    """
    if points.ndim != 2 or points.shape[0] == 0:
        raise ModelError(f"k-means: expected points [n, D], got {tuple(points.shape)}")
    sample = points
    if points.shape[0] > 64 * k:
        sample = points[torch.randperm(points.shape[0], generator=generator)[: 64 * k].to(points.device)]
    centroids = spread_start(sample, k, generator)
    labels, distance = nearest(points, centroids)
    for _ in range(max_rounds):
        counts = torch.bincount(labels, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centroids)
        empty = (counts == 0).nonzero()[:, 0]
        if empty.numel():
            worst = distance.topk(min(int(empty.numel()), points.shape[0])).indices
            centroids[empty[: worst.numel()]] = points[worst]
        before = labels
        labels, distance = nearest(points, centroids)
        if torch.equal(before, labels):
            break
    return Clusters(centroids, labels)
