"""How many values have which magnitude, on one scale for everything, so that counts of layers and models add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST, HIGHEST, PER_DECADE = -12, 12, 10
"""Decades covered, and bins in each; smaller and larger values count in the outermost bins."""

BINS = (HIGHEST - LOWEST) * PER_DECADE
_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """counts [BINS] of log10|x|, and how many values are zero."""

    counts: tuple[int, ...]
    zeros: int

    @classmethod
    def of(cls, *parts: Tensor) -> Magnitudes:
        """Of all values of all parts."""
        counts, zeros = torch.zeros(BINS, dtype=torch.int64), 0
        for part in parts:
            for piece in torch.split(part.detach().reshape(-1), _PIECE):
                size = piece.float().abs()
                present = size[size > 0]
                zeros += size.numel() - present.numel()
                at = ((present.log10() - LOWEST) * PER_DECADE).floor().clamp(0, BINS - 1)
                counts += torch.bincount(at.long().cpu(), minlength=BINS)
        return cls(tuple(counts.tolist()), zeros)

    def __add__(self, other: Magnitudes) -> Magnitudes:
        return Magnitudes(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)), self.zeros + other.zeros
        )

    def share(self) -> list[float]:
        """Of all values, zeros included, per bin; all zero where there are none."""
        total = max(1, sum(self.counts) + self.zeros)
        return [count / total for count in self.counts]


def edges() -> list[float]:
    """The BINS + 1 edges as magnitudes."""
    return [10.0 ** (LOWEST + index / PER_DECADE) for index in range(BINS + 1)]


def total(parts: Sequence[Magnitudes]) -> Magnitudes:
    """The sum, nothing where there are none."""
    out = Magnitudes((0,) * BINS, 0)
    for part in parts:
        out = out + part
    return out
