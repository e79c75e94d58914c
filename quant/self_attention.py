"""Attention over a beam's own tokens whose queries, keys and values are kept in E4M3."""

from __future__ import annotations

from torch import Tensor, nn

from model.decoder import CausalSelfAttention
from quant.primitives import through_e4m3


class Fp8SelfAttention(CausalSelfAttention):
    """A token's queries, keys and values have one scale together, as the GPU engine's product writes them.

    Everything else is computed as in the plain module. Nothing is stored: the parameters are the plain ones.
    """

    def __init__(self, plain: CausalSelfAttention) -> None:
        nn.Module.__init__(self)  # the plain module's own would allocate its weights
        self.head_dim, self.wqkv, self.wo = plain.head_dim, plain.wqkv, plain.wo

    def projected(self, x: Tensor) -> Tensor:
        """x [M, T, d] -> [M, T, 3d]."""
        return through_e4m3(super().projected(x))
