"""The best beams of all beams times all codes, exactly, without ever writing a log probability per code.

Order: a candidate's score is its beam's score plus log softmax of its logit over the whole codebook, and -inf when
it is not legal; of equal scores the lowest index (beam · codebook + code) comes first. Steps: (1) one pass over the
logits gives each row's log sum and the best score of each group of GROUP codes; (2) the k best groups are found: no
candidate outside them can be among the k best, for k candidates come before it; (3) the k best candidates of those
groups. Both are the largest of keys, the scores' bits in an order-preserving form.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from model.engine.largest import largest
from model.engine.limits import WORD
from model.engine.norm import from_the_last
from model.engine.overlap import OVERLAPPED, in_turn

GROUP = 128
"""Codes of a group, or all of a smaller codebook."""

_PER = 32  # candidates that a program ranks
_LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Best first: scores [B, k] float32, beams and codes [B, k] int64."""

    scores: Tensor
    beams: Tensor
    codes: Tensor

    def widened(self, k: int) -> Chosen:
        """The same, and behind them lost candidates, at -inf, up to k."""
        more = k - self.scores.shape[1]
        if not more:
            return self
        return Chosen(
            functional.pad(self.scores, (0, more), value=float("-inf")),
            functional.pad(self.beams, (0, more)),
            functional.pad(self.codes, (0, more)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The n best of each request's beams times codes, in ascending order of their index beam · codebook + code.

    keys [B, W·G] int32 of all codes of the W chosen [B, W] int32 groups; places [B, n] int32 of the candidates there.
    offset [B·R] float32: of each row what a logit and it sum up to the score.
    """

    keys: Tensor
    places: Tensor
    chosen: Tensor
    offset: Tensor
    group: int
    groups: int  # of a row


def select_beams(logits: Tensor, scores: Tensor, k: int, legal: Tensor | None = None) -> Chosen:
    """logits [B·R, C] and scores [B, R] float32 -> the k best of each request's R·C candidates; k a power of two.

    C and R are powers of two, C at least WORD and R·C at least k. legal [B·R, C / 32] int32: bit c % 32 of word c / 32
    says whether code c may be taken. Where fewer than k candidates are legal and alive, illegal ones follow at -inf.
    """
    return ranked(candidates(logits, scores, k, legal), k)


def candidates(logits: Tensor, scores: Tensor, n: int, legal: Tensor | None = None) -> Candidates:
    """The n best, n a multiple of 16 or a smaller power of two; see `select_beams`."""
    batch, beams = scores.shape
    rows, codes = logits.shape
    group = min(GROUP, codes)
    groups = codes // group
    keys = torch.empty(batch, beams * groups, dtype=torch.int32, device=logits.device)
    offset = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _best_of_groups[(rows,)](
        logits, scores, legal, offset, keys, CODES=codes, GROUP=group, WORD=WORD, num_warps=8, **OVERLAPPED
    )
    wanted = min(n, beams * groups)
    chosen, least = largest(keys, wanted)
    inner = torch.empty(batch, wanted * group, dtype=torch.int32, device=logits.device)
    per = min(wanted, 16)
    _keys_of_groups[(batch, wanted // per)](
        logits, legal, offset, chosen, inner, beams,
        GROUPS=groups, GROUP=group, WORD=WORD, WANTED=wanted, PER=per, **OVERLAPPED,
    )  # fmt: skip
    places, _ = largest(inner, n, least if wanted == n else None)  # each of n groups has a candidate no lower
    return Candidates(inner, places, chosen, offset, group, groups)


def ranked(among: Candidates, k: int, keys: Tensor | None = None) -> Chosen:
    """The k best of the candidates by their own keys, or by others [B, n] int32, as `ordered` makes them."""
    places = among.places
    batch, n = places.shape
    out = Chosen(
        torch.empty(batch, k, dtype=torch.float32, device=places.device),
        torch.empty(batch, k, dtype=torch.int64, device=places.device),
        torch.empty(batch, k, dtype=torch.int64, device=places.device),
    )
    per = min(n, _PER)
    _ranked[(batch, n // per)](
        among.keys if keys is None else keys, places, among.chosen, out.scores, out.beams, out.codes, n,
        GROUPS=among.groups, GROUP=among.group, WANTED=among.chosen.shape[1], K=k, OWN=keys is None,
        ALL=triton.next_power_of_2(n), PER=per, num_warps=4, **OVERLAPPED,
    )  # fmt: skip
    return out


@triton.jit
def ordered(x):
    """float32 -> int32 of the same order (minus zero before zero)."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _best_of_groups(logits, scores, legal, offset, keys, CODES: tl.constexpr, GROUP: tl.constexpr, WORD: tl.constexpr):
    in_turn()
    row = from_the_last().to(tl.int64)
    word, bit = tl.arange(0, CODES // WORD), tl.arange(0, WORD)
    x = tl.load(logits + row * CODES + word[:, None] * WORD + bit[None, :]).to(tl.float32)
    top = tl.max(tl.max(x, 1), 0)
    total = tl.sum(tl.sum(tl.exp2(x * _LOG2_E - top * _LOG2_E), 1), 0)
    shift = tl.load(scores + row) - (top + tl.log(total))
    tl.store(offset + row, shift)
    if legal is not None:
        mask = tl.load(legal + row * (CODES // WORD) + word)
        x = tl.where(((mask[:, None] >> bit[None, :]) & 1) != 0, x, float("-inf"))
    best = tl.max(tl.reshape(tl.max(x, 1), [CODES // GROUP, GROUP // WORD]), 1) + shift
    tl.store(keys + row * (CODES // GROUP) + tl.arange(0, CODES // GROUP), ordered(best))


@triton.jit
def _keys_of_groups(
    logits, legal, offset, chosen, inner, beams,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, WORD: tl.constexpr, WANTED: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    in_turn()
    request, slot = tl.program_id(0).to(tl.int64), tl.program_id(1) * PER + tl.arange(0, PER)
    group = tl.load(chosen + request * WANTED + slot).to(tl.int64)
    row = request * beams + group // GROUPS
    code = (group % GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(logits + row[:, None] * (GROUPS * GROUP) + code).to(tl.float32) + tl.load(offset + row)[:, None]
    if legal is not None:
        mask = tl.load(legal + row[:, None] * (GROUPS * GROUP // WORD) + code // WORD)
        x = tl.where(((mask >> (code % WORD).to(tl.int32)) & 1) != 0, x, float("-inf"))
    at = request * WANTED * GROUP + slot[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(inner + at, ordered(x))


@triton.jit
def _ranked(
    keys, places, chosen, scores, beams, codes, n,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, WANTED: tl.constexpr, K: tl.constexpr, OWN: tl.constexpr,
    ALL: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """PER of a request's candidates go to the place that the number of better ones gives them, if there is one."""
    in_turn()
    request = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, ALL)
    mine = tl.program_id(1) * PER + tl.arange(0, PER)
    place = tl.load(places + request * n + mine)
    if OWN:
        at = tl.load(places + request * n + every, every < n, 0)
        others = tl.load(keys + request * WANTED * GROUP + at, every < n, -2147483648)
        key = tl.load(keys + request * WANTED * GROUP + place)
    else:
        others = tl.load(keys + request * n + every, every < n, -2147483648)
        key = tl.load(keys + request * n + mine)
    # candidates ascend by their index, so that the lower one wins among equals
    better = (others[None, :] > key[:, None]) | ((others[None, :] == key[:, None]) & (every[None, :] < mine[:, None]))
    rank = tl.sum(better.to(tl.int32), 1)
    group = tl.load(chosen + request * WANTED + place // GROUP)
    at, kept = request * K + rank, rank < K
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    tl.store(scores + at, bits.to(tl.float32, bitcast=True), kept)
    tl.store(beams + at, (group // GROUPS).to(tl.int64), kept)
    tl.store(codes + at, ((group % GROUPS) * GROUP + place % GROUP).to(tl.int64), kept)
