"""What the engine asks of an arithmetic, and the 16-bit one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from torch.nn import functional

from model.engine.cross_attention import ContextRows
from model.engine.grouped import ExpertMatrix, interleave
from model.engine.head import Head, HeadWeights, PlainHead
from model.engine.norm import Rows
from model.engine.routing import ExpertTiles, Router

M = TypeVar("M")


class Context(Protocol):
    """Keys and values of a batch of requests, stored for one kernel."""

    @property
    def lengths(self) -> Tensor:
        """[B] int32: keys that each request may read."""

    def attend(self, q: Rows, beams: int, heads: int) -> Rows:
        """q [B·R, d], as `Arithmetic.queries` gives them -> softmax(q·kᵀ/√dh)·v of every head [B·R, d], in the format
        of the keys."""


class ExpertProduct(Protocol):
    """Every expert's matrix, stored for one kernel; a gated one holds gate and up and gives silu(gate) · up."""

    @property
    def eight(self) -> bool:
        """Whether rows come in E4M3."""

    @property
    def gathers(self) -> bool:
        """Whether rows come in the tokens' order, each of them once, and the product looks for them itself."""

    def product(self, rows: Rows, experts: ExpertTiles) -> Rows:
        """rows, sorted by expert [M, K] or as they are [T, K] · weight[expert]ᵀ: [M, N], 16 bit, or of a gated matrix
        the rows' own format."""


class GatedProduct(Protocol):
    """A dense feed-forward's gate and up, stored for a kernel that gives silu(gate) · up itself."""

    def of_all(self, rows: Rows) -> Rows:
        """Normed rows [T, d] in E4M3 -> [T, I] in E4M3."""


class Arithmetic(Protocol[M]):
    """How matrices are stored and multiplied; M is a stored matrix. Another room may bring its own."""

    @property
    def name(self) -> str:
        """As shown beside measurements."""

    @property
    def eight(self) -> bool:
        """Whether any rows are rounded to E4M3 before they are multiplied."""

    def takes_eight(self, matrix: M, rows: int) -> bool:
        """Whether so many rows are to be rounded to E4M3 before `product` multiplies them by this matrix."""

    def matrix(self, weight: Tensor) -> M:
        """weight [N, K] 16 bit, or float32 that E4M3 holds with a scale per row -> what `product` reads."""

    def product(self, rows: Rows, matrix: M) -> Tensor:
        """rows [T, K], in either format, · weightᵀ -> [T, N] 16 bit."""

    def own_product(self, rows: Rows, matrix: M) -> Rows:
        """Normed rows [T, K] · weightᵀ -> [T, N], in the format that the attention over own tokens is to read."""

    def queries(self, rows: Rows, matrix: M, head_dim: int) -> Rows:
        """Normed rows [T, K] · weightᵀ -> [T, N], in the format that the attention over a context of this arithmetic is
        to read."""

    def add_product(self, h: Tensor, rows: Rows, matrix: M) -> None:
        """h [T, N] += rows · weightᵀ, in place."""

    def experts(self, up: Tensor, down: Tensor) -> tuple[ExpertProduct, ExpertProduct]:
        """up [E, 2I, d], gate rows first, and down [E, d, I], the former gated."""

    def gated(self, up: Tensor, down: Tensor) -> tuple[GatedProduct, M] | None:
        """up [2I, d], gate rows first, and down [d, I], where there is such a kernel, for rows in E4M3."""

    def head(self, weights: HeadWeights) -> Head:
        """A level's head."""

    def context(self, key: Tensor, value: Tensor, lengths: Tensor) -> Context:
        """Keys and values [B, G, N, dh] 16 bit, the same tensor where values are keys, and lengths [B] int32."""


@dataclass(frozen=True, slots=True)
class SixteenBit:
    """Matrices and rows as they are."""

    name: str = "bf16"
    eight: bool = False

    def takes_eight(self, matrix: Tensor, rows: int) -> bool:  # noqa: ARG002 - the protocol's
        """Never."""
        return False

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight

    def product(self, rows: Rows, matrix: Tensor) -> Tensor:
        """An ordinary product."""
        return functional.linear(rows.values, matrix)

    def own_product(self, rows: Rows, matrix: Tensor) -> Rows:
        """The same."""
        return Rows(functional.linear(rows.values, matrix))

    def queries(self, rows: Rows, matrix: Tensor, head_dim: int) -> Rows:  # noqa: ARG002 - the protocol's
        """The same."""
        return self.own_product(rows, matrix)

    def add_product(self, h: Tensor, rows: Rows, matrix: Tensor) -> None:
        """The sum is rounded once."""
        h.addmm_(rows.values, matrix.t())

    def experts(self, up: Tensor, down: Tensor) -> tuple[ExpertMatrix, ExpertMatrix]:
        """Gate and up rows in turns, so that one thread holds both of a pair."""
        return ExpertMatrix(interleave(up), gated=True), ExpertMatrix(down.contiguous())

    def gated(self, up: Tensor, down: Tensor) -> None:
        """None: rows are in 16 bit."""

    def head(self, weights: HeadWeights) -> Head:
        """Every logit."""
        return PlainHead(weights)

    def context(self, key: Tensor, value: Tensor, lengths: Tensor) -> ContextRows:
        """The tensors themselves."""
        return ContextRows(key, value, lengths)


@dataclass(frozen=True, slots=True, eq=False)
class Dense(Generic[M]):
    """A feed-forward that every row sees whole: up [2I, d], gate rows first, and down [d, I].

    gated: the same for whole tiles of rows in E4M3, where there is a kernel for it, see `Arithmetic.gated`; it is no
    faster for fewer.
    """

    up: M
    down: M
    gated: tuple[GatedProduct, M] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """A mixture; experts that every row sees come first."""

    up: ExpertProduct
    down: ExpertProduct
    router: Router


@dataclass(frozen=True, slots=True, eq=False)
class BlockMatrices(Generic[M]):
    """One block, ready to run; see `BlockWeights`."""

    norm_cross: Tensor
    norm_self: Tensor
    norm_ffn: Tensor
    cross_q: M
    cross_o: M
    self_qkv: M
    self_o: M
    feed_forward: Dense[M] | Experts
