"""The best beams of all beams times all codes, exactly, without ever writing a log probability per code.

Order: a candidate's score is its beam's score plus log softmax of its logit over the whole codebook, and -inf when
it is not legal; of equal scores the lowest index (beam · codebook + code) comes first. Steps: (1) one pass over the
logits gives each row's log sum and the best score of each group of GROUP codes; (2) the k best groups are found: no
candidate outside them can be among the k best, for k candidates come before it; (3) the k best candidates of those
groups. Selection finds the k-th largest key bit by bit, keys being the scores' bits in an order-preserving form, among
those keys that are not below the k-th largest of some keys: few beside the k themselves. Lost candidates, at -inf, are
most of all where few items are left, and are looked at only to fill up.
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

from model.engine.limits import WORD
from model.engine.norm import from_the_last
from model.engine.overlap import OVERLAPPED, in_turn

GROUP = 128
"""Codes of a group, or all of a smaller codebook."""

_LANES, _CHUNK, _SOME = 2048, 4096, 1024
"""Keys that a program looks at in one go: to find a lower bound, to pick those that reach it, and of those."""

_STAGES = 4  # of which all but one are on their way
_LOST = tl.constexpr(-2139095041)  # the key of -inf
_BOUND_BITS = tl.constexpr(20)  # of a lower bound that are looked for: of 32 bits, sign, exponent and half of the rest
_WARPS = 8
_PER = 32  # candidates that a program ranks


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
    chosen, least = _largest(keys, wanted)
    inner = torch.empty(batch, wanted * group, dtype=torch.int32, device=logits.device)
    per = min(wanted, 16)
    _keys_of_groups[(batch, wanted // per)](
        logits, legal, offset, chosen, inner, beams,
        GROUPS=groups, GROUP=group, WORD=WORD, WANTED=wanted, PER=per, **OVERLAPPED,
    )  # fmt: skip
    places, _ = _largest(inner, n, least if wanted == n else None)  # each of n groups has a candidate no lower
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


def _largest(keys: Tensor, k: int, bound: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """keys [B, n] -> the places [B, k] int32 of the k largest, in ascending order, of equal keys the first, behind them
    lost ones where there are no others; and the k-th largest [B], or less than any. bound [B] int32: none of the k that
    are not lost is below it."""
    batch, n = keys.shape
    places = torch.empty(batch, k, dtype=torch.int32, device=keys.device)
    least = torch.empty(batch, dtype=torch.int32, device=keys.device)
    left = torch.empty(batch, 2, n, dtype=torch.int32, device=keys.device)
    room = triton.next_power_of_2(n)
    sizes = {"LANES": min(_LANES, room), "CHUNK": min(_CHUNK, room), "SOME": min(_SOME, room), "STAGES": _STAGES}
    _find[(batch,)](keys, bound, left, places, least, n, k, **sizes, num_warps=_WARPS, **OVERLAPPED)
    return places, least


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
    shift = tl.load(scores + row) - (top + tl.log(tl.sum(tl.sum(tl.exp(x - top), 1), 0)))
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
def _step(least, bit: tl.constexpr):
    """The next larger trial of a search for a key bit by bit from the highest, which flips the sign first."""
    return least ^ tl.full([], -2147483648, tl.int32) if bit == 0 else least | (1 << (31 - bit))


@triton.jit
def _find(
    keys, bound, left, places, kth, n, k,
    LANES: tl.constexpr, CHUNK: tl.constexpr, SOME: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The k-th largest key by its bits from the highest; then everything above it, and of its equals the first.

    Where no bound is given each lane keeps the largest of its keys. The k-th largest of those is not above the one that
    is looked for. Only what is not below the bound, and not lost, is kept, in order, with its place in `left`.
    """
    in_turn()
    request = tl.program_id(0).to(tl.int64)
    base, out = keys + request * n, places + request * k
    left_keys, left_places = left + request * 2 * n, left + request * 2 * n + n
    lane, few = tl.arange(0, CHUNK), tl.arange(0, SOME)
    floor = tl.load(bound + request) if bound is not None else _bound_of(base, n, k, LANES, STAGES)
    count = tl.full([], 0, tl.int32)
    for start in tl.range(0, n, CHUNK, num_stages=STAGES):
        here = start + lane < n
        x = tl.load(base + start + lane, here, -2147483648)
        flag = ((x >= floor) & (x > _LOST) & here).to(tl.int32)
        at = count + tl.cumsum(flag, 0) - 1
        tl.store(left_keys + at, x, flag > 0)
        tl.store(left_places + at, start + lane, flag > 0)
        count += tl.sum(flag, 0)
    tl.debug_barrier()  # other threads read what this one has written
    some = tl.load(left_keys + few, few < count, -2147483648)  # mostly all
    least = tl.full([], -2147483648, tl.int32)
    for bit in tl.static_range(32):
        trial = _step(least, bit)
        reached = ((some >= trial) & (few < count)).to(tl.int32)
        for start in tl.range(SOME, count, SOME):
            x = tl.load(left_keys + start + few, start + few < count, -2147483648)
            reached += ((x >= trial) & (start + few < count)).to(tl.int32)
        least = tl.where(tl.sum(reached, 0) >= k, trial, least)
    tl.store(kth + request, least)
    above = tl.zeros([SOME], tl.int32)
    for start in tl.range(0, count, SOME):
        x = tl.load(left_keys + start + few, start + few < count, -2147483648)
        above += ((x > least) & (start + few < count)).to(tl.int32)
    equals = k - tl.sum(above, 0)
    done = tl.full([], 0, tl.int32)
    seen = tl.full([], 0, tl.int32)
    for start in tl.range(0, count, SOME):
        here = start + few < count
        x = tl.load(left_keys + start + few, here, -2147483648)
        place = tl.load(left_places + start + few, here, 0)
        equal = ((x == least) & here).to(tl.int32)
        order = seen + tl.cumsum(equal, 0)
        take = ((x > least) & here) | ((equal > 0) & (order <= equals))
        flag = take.to(tl.int32)
        tl.store(out + done + tl.cumsum(flag, 0) - 1, place, take)
        done += tl.sum(flag, 0)
        seen += tl.sum(equal, 0)
    _fill_up(base, out, n, k, done, CHUNK)


@triton.jit
def _bound_of(keys, n, k, LANES: tl.constexpr, STAGES: tl.constexpr):
    """The k-th largest of the largest keys of LANES lanes, or a little less."""
    lane = tl.arange(0, LANES)
    top = tl.full([LANES], -2147483648, tl.int32)
    for start in tl.range(0, n, LANES, num_stages=STAGES):
        top = tl.maximum(top, tl.load(keys + start + lane, start + lane < n, -2147483648))
    bound = tl.full([], -2147483648, tl.int32)
    for bit in tl.static_range(_BOUND_BITS):
        trial = _step(bound, bit)
        bound = tl.where(tl.sum((top >= trial).to(tl.int32), 0) >= k, trial, bound)
    return bound


@triton.jit
def _fill_up(keys, places, n, k, done, CHUNK: tl.constexpr):
    """From `done` to k the places of the first lost ones."""
    lane = tl.arange(0, CHUNK)
    start = 0
    while done < k:
        x = tl.load(keys + start + lane, start + lane < n, 0)
        lost = ((x <= _LOST) & (start + lane < n)).to(tl.int32)
        at = done + tl.cumsum(lost, 0) - 1
        tl.store(places + at, start + lane, (lost > 0) & (at < k))
        done += tl.sum(lost, 0)
        start += CHUNK


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
