"""How good semantic ids are: what the paper reports of a tokenizer, and a little more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenizerQuality:
    """What the paper reports of a tokenizer (arXiv 2508.20900, section on semantic ids).

    reconstruction: mean squared distance of an item to its summed centroids, over the mean squared distance to
    the mean item (0 is perfect), by the codes that the item wanted; utilisation and entropy_bits: per level, share of
    codes in use and entropy of their use; collision_rate: share of items whose own id was taken and had to move.
    reconstruction_by_level: reconstruction with the first 1, 2, ... levels alone; reconstruction_assigned: by the codes
    that the items really have, moved ones included; largest_group: per level, share of the items under the most
    frequent prefix of that length.
    """

    reconstruction: float
    utilisation: tuple[float, ...]
    entropy_bits: tuple[float, ...]
    collision_rate: float
    reconstruction_by_level: tuple[float, ...] = ()
    reconstruction_assigned: float = float("nan")
    largest_group: tuple[float, ...] = ()

    def to_markdown(self) -> str:
        """A table with one row per level, and one line below it."""
        lines = ["| level | reconstruction | codes used | entropy, bits | largest prefix |", "|---|---|---|---|---|"]
        for level, used in enumerate(self.utilisation):
            left, bits, group = self.reconstruction_by_level[level], self.entropy_bits[level], self.largest_group[level]
            lines.append(f"| {level + 1} | {left:.4f} | {used:.1%} | {bits:.2f} | {group:.3%} |")
        lines.append(
            f"\nCollisions: {self.collision_rate:.3%} of the items had to move; reconstruction by the codes as "
            f"assigned: {self.reconstruction_assigned:.4f}."
        )
        return "\n".join(lines)


def measure(points: Tensor, wanted: Tensor, codes: Tensor, centroids: Tensor) -> TokenizerQuality:
    """points [n, D], the codes that fit best (wanted) and those assigned [n, levels], centroids [levels, K, D]."""
    n, levels = codes.shape
    spread = (points - points.mean(0)).square().sum(-1).mean().clamp_min(1e-12)
    size = centroids.shape[1]
    shares = [torch.bincount(codes[:, level], minlength=size).double() / n for level in range(levels)]
    residual, left, groups = points, [], []
    prefix = torch.zeros(n, dtype=torch.int64)
    for level in range(levels):
        residual = residual - centroids[level][wanted[:, level]]
        left.append(float(residual.square().sum(-1).mean() / spread))
        prefix = torch.unique(prefix * size + codes[:, level], return_inverse=True)[1]
        groups.append(int(torch.bincount(prefix).max()) / n)
    assigned = points - sum(centroids[level][codes[:, level]] for level in range(levels))
    return TokenizerQuality(
        reconstruction=left[-1],
        utilisation=tuple(float((share > 0).double().mean()) for share in shares),
        entropy_bits=tuple(float(-(share * share.clamp_min(1e-300).log2()).sum()) for share in shares),
        collision_rate=float((codes != wanted).any(1).double().mean()),
        reconstruction_by_level=tuple(left),
        reconstruction_assigned=float(assigned.square().sum(-1).mean() / spread),
        largest_group=tuple(groups),
    )
