"""Collisions of semantic ids: several items want one id, and each must get one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.errors import ModelError

CHUNK = 1024
"""Items whose distances to all codes of the last level are held at once."""
NEAREST = 64
"""Last codes that are tried before the search through all of them."""


def radix_keys(codes: Tensor, codebook_size: int) -> Tensor:
    """Ids [n, levels] as one integer each [n], in lexicographic order. Raises ModelError beyond 63 bits."""
    if codebook_size ** codes.shape[1] > 2**63:
        raise ModelError(f"codebook_size: {codebook_size}^{codes.shape[1]} ids do not fit into 63 bits")
    keys = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
    for level in range(codes.shape[1]):
        keys = keys * codebook_size + codes[:, level]
    return keys


def resolve_collisions(points: Tensor, wanted: Tensor, centroids: Tensor, taken: Tensor | None = None) -> Tensor:
    """Give each item an id of its own, moving as few items as little as can be.

    In a group of items that want one id, the best-fitting item keeps it. Each other one, best-fitting first, takes the
    free last code nearest to its residual; where its prefix has none left, the nearest second-to-last code that has,
    and so on upwards. points [n, D], wanted [n, levels], centroids [levels, K, D], taken [m, levels]: ids of older
    items, which they keep. Returns codes [n, levels]. Raises ModelError when no id is left.
    """
    size = centroids.shape[1]
    keys = radix_keys(wanted, size)
    misfit = misfits(points, wanted, centroids)
    order = torch.argsort(misfit, stable=True)
    order = order[torch.argsort(keys[order], stable=True)]  # groups of one id, best fit first
    ranked = keys[order]
    keeps = torch.ones_like(ranked, dtype=torch.bool)
    keeps[1:] = ranked[1:] != ranked[:-1]
    older = radix_keys(taken, size) if taken is not None else ranked[:0]
    keeps &= ~torch.isin(ranked, older)
    losers = order[~keeps]
    losers = losers[torch.argsort(misfit[losers], stable=True)]
    if not losers.numel():
        return wanted.clone()
    used = set(torch.cat([older, ranked[keeps]]).tolist())
    codes = wanted.clone()
    for item, preferred in zip(losers.tolist(), _last_codes(points, wanted, centroids, losers), strict=True):
        prefix = int(keys[item]) // size * size
        for code in preferred:
            if prefix + code not in used:
                used.add(prefix + code)
                codes[item, -1] = code
                break
        else:
            found = _nearest_free(points[item], wanted[item].tolist(), centroids, used)
            used.add(_key(found, size))
            codes[item] = torch.tensor(found)
    return codes


def misfits(points: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """Squared distance [n] of points [n, D] to the sum of their codes' centroids."""
    rest = points - sum(centroids[level][codes[:, level]] for level in range(centroids.shape[0]))
    squared: Tensor = rest.square().sum(-1)
    return squared


def _last_codes(points: Tensor, wanted: Tensor, centroids: Tensor, items: Tensor) -> Iterator[list[int]]:
    """For each of the items the `NEAREST` codes of the last level, nearest to its residual first."""
    for chunk in items.split(CHUNK):  # type: ignore[no-untyped-call]
        residual = points[chunk] - sum(centroids[i][wanted[chunk, i]] for i in range(centroids.shape[0] - 1))
        distance = centroids[-1].square().sum(-1) - 2.0 * (residual @ centroids[-1].T)
        few = distance.shape[1] <= NEAREST
        nearest = distance.argsort(dim=1, stable=True) if few else distance.topk(NEAREST, dim=1, largest=False).indices
        yield from nearest.tolist()


def _key(code: tuple[int, ...], size: int) -> int:
    key = 0
    for part in code:
        key = key * size + part
    return key


def _nearest_free(point: Tensor, wanted: list[int], centroids: Tensor, used: set[int]) -> tuple[int, ...]:
    """The free id that keeps the longest prefix of `wanted`, then follows the nearest centroids."""
    for keep in range(len(wanted) - 1, -1, -1):
        found = _descend(point, tuple(wanted[:keep]), centroids, used)
        if found is not None:
            return found
    raise ModelError("codebook_size: every semantic id is taken")


def _descend(point: Tensor, prefix: tuple[int, ...], centroids: Tensor, used: set[int]) -> tuple[int, ...] | None:
    """Depth first, nearest code first."""
    level = len(prefix)
    if level == centroids.shape[0]:
        return None if _key(prefix, centroids.shape[1]) in used else prefix
    residual = point - sum((centroids[i][code] for i, code in enumerate(prefix)), torch.zeros_like(point))
    order = (centroids[level] - residual).square().sum(-1).argsort(stable=True).tolist()
    for code in order:
        found = _descend(point, (*prefix, code), centroids, used)
        if found is not None:
            return found
    return None
