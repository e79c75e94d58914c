"""Lloyd's k-means on any torch device, seeded, in memory-bounded chunks, with clusters of equal size on request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.errors import ModelError

CHUNK_DISTANCES = 2**22
"""Distances held at once: 16 MiB, so that a chunk is still in the processor's cache when its minimum is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """centroids [K, D] and the one of every point, labels [n]: the nearest, or the nearest with a place left."""

    centroids: Tensor
    labels: Tensor


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """points [n, D], centroids [K, D] -> (label [n], squared distance [n]); ties go to the lower index."""
    return _nearest_admissible(points, centroids, None)


def nearest_with_places(points: Tensor, centroids: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """As `nearest`, but no centroid gets more than `places` points: the stable matching by distance.

    Deferred acceptance (Gale, Shapley 1962): each point applies to the nearest centroid that could still take it, a
    centroid keeps its nearest applicants, the refused ones apply elsewhere. No point and centroid are then nearer to
    each other than each to what it got. Raises ModelError when there are fewer places than points.
    """
    n, k = points.shape[0], centroids.shape[0]
    if places * k < n:
        raise ModelError(f"k-means: {k} clusters of at most {places} cannot hold {n} points")
    labels = torch.full((n,), -1, dtype=torch.int64, device=points.device)
    distance = torch.full((n,), torch.inf, dtype=points.dtype, device=points.device)
    limit = torch.full((k,), torch.inf, dtype=points.dtype, device=points.device)  # who is farther need not apply
    free = torch.arange(n, device=points.device)
    while free.numel():
        labels[free], distance[free] = _nearest_admissible(points[free], centroids, limit)
        crowded = torch.bincount(labels, minlength=k) > places
        at = crowded[labels].nonzero()[:, 0]
        at = at[torch.argsort(distance[at], stable=True)]
        at = at[torch.argsort(labels[at], stable=True)]
        place = _position_in_run(labels[at])
        limit = limit.index_put((labels[at[place == places - 1]],), distance[at[place == places - 1]])
        free = at[place >= places].sort().values
    return labels, distance


def _nearest_admissible(points: Tensor, centroids: Tensor, limit: Tensor | None) -> tuple[Tensor, Tensor]:
    """Nearest among the centroids [K] whose limit [K] lies beyond the point's distance; all of them without a limit."""
    n, k = points.shape[0], centroids.shape[0]
    rows = max(1, min(n, CHUNK_DISTANCES // k))
    offset, norm = centroids.square().sum(-1), points.square().sum(-1)
    # Made once: results kept between large buffers that come and go would cut the heap up, gigabytes of it.
    scratch = points.new_empty(rows, k)
    labels = torch.empty(n, dtype=torch.int64, device=points.device)
    distances = points.new_empty(n)
    for start in range(0, n, rows):
        here = slice(start, start + rows)
        chunk = points[here]
        distance = torch.mm(chunk, centroids.T, out=scratch[: chunk.shape[0]]).mul_(-2.0).add_(offset)
        if limit is not None:
            distance.add_(norm[here, None]).clamp_min_(0.0)
            distance.masked_fill_(distance >= limit, torch.inf)
        torch.min(distance, dim=1, out=(distances[here], labels[here]))
    return labels, distances if limit is not None else distances.add_(norm).clamp_min_(0.0)


def _position_in_run(labels: Tensor) -> Tensor:
    """Sorted labels [n] -> how many equal ones stand before each."""
    index = torch.arange(labels.shape[0], device=labels.device)
    return index - torch.searchsorted(labels, labels)


def spread_start(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next start is drawn with probability proportional to its squared distance.

    From 512 starts on, k/256 of them are drawn at once, as in k-means|| (Bahmani et al., VLDB 2012): one pass over
    the points for each start would take longer than the clustering.
    """
    n, at_once = points.shape[0], max(1, k // 256)
    chosen = torch.randint(n, (1,), generator=generator).to(points.device)
    distance = (points - points[chosen]).square().sum(-1)
    while chosen.shape[0] < k:
        draws = min(at_once, k - chosen.shape[0])
        weights = distance.double().cumsum(0)
        if not float(weights[-1]) > 0.0:
            drawn = torch.randint(n, (draws,), generator=generator).to(points.device)
        else:
            level = torch.rand(draws, generator=generator, dtype=torch.float64).to(weights) * weights[-1]
            drawn = torch.searchsorted(weights, level).clamp_max(n - 1)
        chosen = torch.cat([chosen, drawn])
        fresh = (points - points[drawn]).square().sum(-1) if draws == 1 else nearest(points, points[drawn])[1]
        distance = torch.minimum(distance, fresh)
    return points[chosen].clone()


def kmeans(
    points: Tensor,
    k: int,
    generator: torch.Generator,
    max_rounds: int = 50,
    *,
    balanced: bool = False,
    points_per_code: int | None = None,
) -> Clusters:
    """Cluster points [n, D] into k groups; a group that runs empty restarts at the worst-fitted point.

    balanced: no group gets more than ceil(n/k) points, in the fit and in the labels. OneRec fills one cluster after the
    other (arXiv 2502.18965, algorithm 1), so that the last ones get what is left; here all fill at once.
    points_per_code: the centroids are fitted on a random sample of that many points each and all points labelled
    afterwards; None fits on all. `generator` lives on the CPU, so that CPU and GPU draw the same. Raises ModelError
    without points or with an impossible number.
    """
    if points.ndim != 2 or points.shape[0] == 0:
        raise ModelError(f"k-means: expected points [n, D], got {tuple(points.shape)}")
    if points_per_code is not None and points_per_code < 1:
        raise ModelError(f"points_per_code: must be at least 1, got {points_per_code}")
    fitted = _sample(points, points_per_code * k, generator) if points_per_code is not None else points
    centroids = spread_start(_sample(fitted, 64 * k, generator), k, generator)
    labels, distance = _assign(fitted, centroids, balanced)
    for _ in range(max_rounds):
        counts = torch.bincount(labels, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, labels, fitted)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centroids)
        empty = (counts == 0).nonzero()[:, 0]
        if empty.numel():
            worst = distance.topk(min(int(empty.numel()), fitted.shape[0])).indices
            centroids[empty[: worst.numel()]] = fitted[worst]
        before = labels
        labels, distance = _assign(fitted, centroids, balanced)
        if torch.equal(before, labels):
            break
    if fitted is not points:
        labels, _ = _assign(points, centroids, balanced)
    return Clusters(centroids, labels)


def _assign(points: Tensor, centroids: Tensor, balanced: bool) -> tuple[Tensor, Tensor]:
    if not balanced:
        return nearest(points, centroids)
    return nearest_with_places(points, centroids, -(-points.shape[0] // centroids.shape[0]))


def _sample(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random subset of that size, or all points where there are no more."""
    if points.shape[0] <= size:
        return points
    return points[torch.randperm(points.shape[0], generator=generator)[:size].to(points.device)]
