"""A head whose logits are screened in E4M3: the best by those are scored again in 16 bit.

Half as much again as are wanted are kept; what E4M3 moves a logit by is a few hundredths of what logits vary by, so
hardly ever one of the best is missed. A candidate's own logit is as exact as a product in 16 bit has it, and not
rounded. The sum over the codebook that it is measured by is that of the E4M3 logits, in which the candidates' are
exchanged: where a few codes have most of the probability they are among the candidates, and where many have it their
errors cancel.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.head import HeadWeights, PlainHead
from model.engine.norm import Mixed, add_norm, row_at, whole_row
from model.engine.overlap import OVERLAPPED, in_turn
from model.engine.select import Candidates, Chosen, candidates, ordered, ranked
from quant.kernels.dense import PackedMatrix

_LEAST_ROWS = 4096
"""Of fewer rows scoring again takes about what E4M3 saves: an estimate from 14,336 (493 instead of 693 us)."""

_PER = 32  # candidates whose sums a program corrects


@dataclass(frozen=True, slots=True, eq=False)
class ScreenedHead:
    """packed: the head's matrix in E4M3, for products of many rows."""

    weights: HeadWeights
    packed: PackedMatrix

    def screens(self, scores: Tensor, k: int) -> bool:
        """Whether the k best of beams with these scores [B, R] are found so: it must be worth it, and enough to choose
        from."""
        wanted, there = kept_of(k), scores.shape[1] * self.weights.matrix.shape[0]
        return scores.numel() >= _LEAST_ROWS and wanted % _PER == 0 and wanted <= there

    def best(self, h: Tensor, pending: Mixed | None, scores: Tensor, k: int, legal: Tensor | None) -> Chosen:
        """See `Head.best`."""
        if not self.screens(scores, k):
            return PlainHead(self.weights).best(h, pending, scores, k, legal)
        x = add_norm(h, pending, self.weights.norm, self.weights.eps, eight=True)
        logits = self.packed.product(x)
        found = candidates(logits, scores, kept_of(k), legal)
        return ranked(found, k, rescored(found, logits, h, scores, self.weights))


def kept_of(k: int) -> int:
    """Candidates that are scored again, where k are wanted."""
    return k + k // 2


def rescored(found: Candidates, logits: Tensor, h: Tensor, scores: Tensor, weights: HeadWeights) -> Tensor:
    """The keys [B, n] int32 of the candidates by logits in 16 bit. h [B·R, d] 16 bit and logits [B·R, C] by rows."""
    (batch, n), d = found.places.shape, h.shape[1]
    beams, codes = scores.shape[1], logits.shape[1]
    exact = torch.empty(batch, n, dtype=torch.float32, device=h.device)
    excess, keys = torch.empty_like(exact), torch.empty_like(found.places)
    rows = torch.empty_like(found.places)
    shape = {"GROUPS": found.groups, "GROUP": found.group, "WANTED": found.chosen.shape[1]}
    _rescore[(batch * n,)](
        h, weights.norm, weights.matrix, logits, found.places, found.chosen, found.offset, scores,
        exact, excess, rows, n, beams, codes, weights.eps, **shape, **whole_row(d), **OVERLAPPED,
    )  # fmt: skip
    _correct[(batch, n // _PER)](
        exact, excess, rows, found.keys, found.places, keys, n,
        WANTED=shape["WANTED"] * found.group, ALL=triton.next_power_of_2(n), PER=_PER, num_warps=4, **OVERLAPPED,
    )  # fmt: skip
    return keys


@triton.jit
def _rescore(
    h, gamma, head, logits, places, chosen, offset, scores, exact, excess, rows, n, beams, codes, eps,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, WANTED: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A candidate's score by its own logit, and by how much its probability grows with that."""
    in_turn()
    at = tl.program_id(0)
    request = (at // n).to(tl.int64)
    place = tl.load(places + at)
    group = tl.load(chosen + request * WANTED + place // GROUP)
    row = request * beams + group // GROUPS
    code = (group % GROUPS * GROUP + place % GROUP).to(tl.int64)
    x, weight, other = row_at(h, row, D, CHUNK), row_at(gamma, 0, D, CHUNK), row_at(head, code, D, CHUNK)
    squares = tl.zeros([CHUNK], tl.float32)
    sums = tl.zeros([CHUNK], tl.float32)
    for c in tl.static_range(len(x)):
        squares += x[c] * x[c]
        sums += x[c] * weight[c] * other[c]
    logit = tl.sum(sums, 0) * tl.rsqrt(tl.sum(squares, 0) / D + eps)
    shift = tl.load(offset + row)
    least = shift - tl.load(scores + row)  # the score without what comes before
    before = tl.load(logits + row * codes + code).to(tl.float32)
    tl.store(exact + at, logit + shift)
    tl.store(excess + at, tl.exp(logit + least) - tl.exp(before + least))
    tl.store(rows + at, row.to(tl.int32))


@triton.jit
def _correct(
    exact, excess, rows, keys, places, out, n, WANTED: tl.constexpr, ALL: tl.constexpr, PER: tl.constexpr
):  # fmt: skip
    """PER of a request's candidates: what those of its row add to the sum over the codebook is taken away again."""
    in_turn()
    request = tl.program_id(0).to(tl.int64)
    every, mine = tl.arange(0, ALL), tl.program_id(1) * PER + tl.arange(0, PER)
    others = tl.load(rows + request * n + every, every < n, -1)
    more = tl.load(excess + request * n + every, every < n, 0.0)
    row = tl.load(rows + request * n + mine)
    grown = tl.sum(tl.where(others[None, :] == row[:, None], more[None, :], 0.0), 1)
    score = tl.load(exact + request * n + mine) - tl.log(tl.maximum(1.0 + grown, 0.5))
    dead = tl.load(keys + request * WANTED + tl.load(places + request * n + mine)) == ordered(
        tl.full([PER], float("-inf"), tl.float32)
    )
    tl.store(out + request * n + mine, ordered(tl.where(dead, float("-inf"), score)))
