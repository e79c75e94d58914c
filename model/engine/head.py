"""From the last block's residual to the next beams: norm, head, selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from model.engine.norm import Mixed, add_norm
from model.engine.select import Chosen, select_beams


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """Of one level: norm [d] and matrix [C, d], 16 bit."""

    norm: Tensor
    matrix: Tensor
    eps: float


class Head(Protocol):
    """A level's head as an arithmetic computes it."""

    def best(self, h: Tensor, pending: Mixed | None, scores: Tensor, k: int, legal: Tensor | None) -> Chosen:
        """h [B·R, d], to which `pending` is still to be added -> the k best of each request, see `select_beams`."""


@dataclass(frozen=True, slots=True, eq=False)
class PlainHead:
    """Every logit in 16 bit."""

    weights: HeadWeights

    def best(self, h: Tensor, pending: Mixed | None, scores: Tensor, k: int, legal: Tensor | None) -> Chosen:
        """By an ordinary product."""
        x = add_norm(h, pending, self.weights.norm, self.weights.eps)
        return select_beams(functional.linear(x.values, self.weights.matrix), scores, k, legal)
