"""One decode of a batch: three levels of blocks, heads and beams, without a word to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from model.engine.arithmetic import Arithmetic, BlockMatrices, Context, Dense, Experts
from model.engine.head import HeadWeights
from model.engine.legality import descend, legal_bits
from model.engine.limits import MOST_BEAMS, power_of_two, unfit_model
from model.engine.norm import Mixed, Rows, add_norm
from model.engine.overlap import SideBySide
from model.engine.prefixes import Prefixes
from model.engine.routing import ROWS_TILE, Router, choose, norm_dispatch, tally_size
from model.engine.self_attention import self_attention
from model.engine.swiglu import swiglu
from model.engine.weights import BlockWeights, DecoderWeights
from model.errors import ModelError

M = TypeVar("M")


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Best first: codes [B, W, levels] int64 and their log probabilities [B, W] float32, -inf where nothing was left.

    items [B, W] int64, where a trie was given: catalogue indices, -1 where nothing was left.
    """

    codes: Tensor
    scores: Tensor
    items: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """The trie that the beams have to follow, and of each level the seen items' nodes [B, M], see `Prefixes.used`."""

    prefixes: Prefixes
    used: tuple[Tensor, ...] | None = None


class Decoder(Generic[M]):
    """The decoder's weights in one arithmetic, and the beam search over them.

    What the first block asks the context depends on a beam's last code alone, so it is computed once for every code.
    Beams are folded into the rows of every product and into the queries of one attention call per block. Keys and
    values of generated tokens stay where their product put them: a later level finds them by its parents' numbers.
    """

    def __init__(self, weights: DecoderWeights, arithmetic: Arithmetic[M]) -> None:
        config = weights.config
        if reasons := unfit_model(config, weights.bos.dtype, eight=arithmetic.eight):
            raise ModelError(f"the engine cannot decode this model: {'; '.join(reasons)}")
        self.config, self.arithmetic = config, arithmetic
        self.bos, self.token_embed = weights.bos, weights.token_embed
        heads = zip(weights.head_norms, weights.heads, strict=True)
        self.heads = tuple(arithmetic.head(HeadWeights(norm, matrix, config.norm_eps)) for norm, matrix in heads)
        self.blocks = tuple(self._prepared(block) for block in weights.blocks)
        self._side_by_side = SideBySide(weights.device)
        self.first_queries = tuple(self._queries(self.blocks[0], table) for table in self.token_embed)

    def _prepared(self, block: BlockWeights) -> BlockMatrices[M]:
        matrix = self.arithmetic.matrix
        return BlockMatrices(
            norm_cross=block.norm_cross,
            norm_self=block.norm_self,
            norm_ffn=block.norm_ffn,
            cross_q=matrix(block.cross_q),
            cross_o=matrix(block.cross_o),
            self_qkv=matrix(block.self_qkv),
            self_o=matrix(block.self_o),
            feed_forward=self._feed_forward_of(block),
        )

    def _feed_forward_of(self, block: BlockWeights) -> Dense[M] | Experts:
        if block.router is None or block.router_bias is None:
            matrix, up, down = self.arithmetic.matrix, block.up[0], block.down[0]
            return Dense(matrix(up), matrix(down), self.arithmetic.gated(up, down))
        products = self.arithmetic.experts(block.up, block.down)
        weight = (block.router.float() * block.norm_ffn.float()).to(block.router.dtype)
        top_k = self.config.experts_per_token
        return Experts(*products, Router(weight, block.router_bias, top_k, block.shared))

    def decode(self, contexts: tuple[Context, ...], width: int, walk: Walk | None = None) -> Decoded:
        """One context per key/value set; width: beams kept after every level, a power of two up to MOST_BEAMS.

        With a walk only prefixes of unseen items are followed, as `reference.search` defines it. Beams that a codebook
        smaller than `width` leaves over are lost ones, so that every later level has `width` rows a request, as the
        self attention counts them.
        """
        config = self.config
        batch = contexts[0].lengths.shape[0]
        if not power_of_two(width) or width > MOST_BEAMS:
            raise ModelError(f"beam_width: the engine needs a power of two up to {MOST_BEAMS}, got {width}")
        h = self.bos.repeat(batch, 1)
        scores = torch.zeros(batch, 1, device=h.device)
        codes = torch.empty(batch, 1, 0, dtype=torch.int64, device=h.device)
        past: list[list[Rows]] = [[] for _ in self.blocks]
        parents: tuple[Tensor, ...] = ()
        nodes = None if walk is None else walk.prefixes.roots(batch)
        q = self._queries(self.blocks[0], h)
        shape = (config.levels, config.n_layers, tally_size(config.n_experts))
        tallies = torch.zeros(shape, dtype=torch.int32, device=h.device)
        for level in range(config.levels):
            pending: Mixed | None = None
            beams = scores.shape[1]
            for layer, block in enumerate(self.blocks):
                context = contexts[config.kv_set_of(layer)]
                tally = tallies[level, layer]
                if layer:
                    q = self._queries(block, h, pending)
                pending, qkv = self._block(block, h, q, context, beams, tuple(past[layer]), parents, tally)
                past[layer].append(qkv)
            legal = None
            if walk is not None and nodes is not None:
                legal = legal_bits(walk.prefixes, level, nodes, None if walk.used is None else walk.used[level])
            kept = min(width, beams * config.codebook_size)
            best = self.heads[level].best(h, pending, scores, kept, legal).widened(width)
            if walk is not None and nodes is not None:
                nodes = descend(walk.prefixes, level, nodes, best)
            scores = best.scores
            before = codes.gather(1, best.beams[..., None].expand(-1, -1, codes.shape[2]))
            codes = torch.cat([before, best.codes[..., None]], dim=-1)
            if level + 1 < config.levels:
                last = best.codes.flatten()
                h, q = self.token_embed[level][last], self.first_queries[level].of(last)
                parents = (best.beams.flatten(),) if level else ()
        items = None if walk is None or nodes is None else walk.prefixes.items(nodes)
        return Decoded(codes, scores, items)

    def _queries(self, block: BlockMatrices[M], h: Tensor, pending: Mixed | None = None) -> Rows:
        """What a block asks the context [T, d]; h [T, d] is brought up to date in place."""
        x = add_norm(h, pending, block.norm_cross, self.config.norm_eps, eight=self._eight(block.cross_q, h))
        return self.arithmetic.queries(x, block.cross_q, self.config.head_dim)

    def _block(
        self,
        block: BlockMatrices[M],
        h: Tensor,
        q: Rows,
        context: Context,
        beams: int,
        past: tuple[Rows, ...],
        parents: tuple[Tensor, ...],
        tally: Tensor,
    ) -> tuple[Mixed | None, Rows]:
        """h [B·R, d] is brought up to date in place; returns what is still to be added to it, and the qkv rows."""
        add_product = self.arithmetic.add_product
        eps, heads = self.config.norm_eps, self.config.n_heads
        add_product(h, context.attend(q, beams, heads), block.cross_o)
        x = add_norm(h, None, block.norm_self, eps, eight=self._eight(block.self_qkv, h))
        qkv = self.arithmetic.own_product(x, block.self_qkv)
        add_product(
            h, self_attention(qkv, past, parents, beams, heads, eight=self._eight(block.self_o, h)), block.self_o
        )
        if isinstance(block.feed_forward, Experts):
            return self._mixture(block.feed_forward, h, block.norm_ffn, tally), qkv
        self._dense(block.feed_forward, h, block.norm_ffn)
        return None, qkv

    def _dense(self, layer: Dense[M], h: Tensor, gamma: Tensor) -> None:
        eps, eight = self.config.norm_eps, self._eight(layer.up, h)
        if layer.gated and eight and h.shape[0] >= ROWS_TILE:
            first, second = layer.gated
            self.arithmetic.add_product(h, first.of_all(add_norm(h, None, gamma, eps, eight=True)), second)
        else:
            inner = self.arithmetic.product(add_norm(h, None, gamma, eps, eight=eight), layer.up)
            self.arithmetic.add_product(h, swiglu(inner, eight=self._eight(layer.down, h)), layer.down)

    def _eight(self, matrix: M, h: Tensor) -> bool:
        return self.arithmetic.takes_eight(matrix, h.shape[0])

    def _mixture(self, layer: Experts, h: Tensor, gamma: Tensor, tally: Tensor) -> Mixed:
        eps, router, eight = self.config.norm_eps, layer.router, layer.up.eight
        if layer.up.gathers:
            choice, rows = self._side_by_side.both(
                lambda: choose(h, eps, router, tally), lambda: add_norm(h, None, gamma, eps, eight=eight)
            )
        else:
            choice = choose(h, eps, router, tally)
            rows = norm_dispatch(h, gamma, eps, choice, eight=eight)
        inner = layer.up.product(rows, choice.tiles)
        return choice.mixed(layer.down.product(inner, choice.tiles))
