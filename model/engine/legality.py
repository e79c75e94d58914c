"""Which codes a beam may take next, and where the chosen ones lead: the trie of valid items, walked on the device."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.overlap import OVERLAPPED, in_turn
from model.engine.prefixes import Prefixes
from model.engine.select import Chosen

_MOST_CHILDREN = 256  # that one program looks at


def legal_bits(prefixes: Prefixes, level: int, nodes: Tensor, used: Tensor | None) -> Tensor:
    """Nodes [B, R] int32 of the level above -> [B·R, codebook / 32] int32, a bit for each code that may follow.

    used [B, M]: this level's nodes of the seen items, ascending, see `Prefixes.used`. A child is left out when as
    many seen items are under it as there are items. As `reference.legal_codes`, packed.
    """
    batch, beams = nodes.shape
    words = prefixes.codebook // 32
    bits = torch.zeros(batch * beams, words, dtype=torch.int32, device=nodes.device)
    length = 0 if used is None else used.shape[1]
    block = min(_MOST_CHILDREN, triton.next_power_of_2(prefixes.fan_out[level]))
    _mark[(batch * beams, triton.cdiv(prefixes.fan_out[level], block))](
        bits,
        nodes,
        prefixes.first[level],
        prefixes.codes[level],
        prefixes.items_under[level],
        used if length else None,
        beams,
        words,
        length,
        STEPS=length.bit_length(),
        BLOCK=block,
        num_warps=max(1, min(4, block // 64)),
        **OVERLAPPED,
    )
    return bits


def descend(prefixes: Prefixes, level: int, nodes: Tensor, chosen: Chosen) -> Tensor:
    """The child that each chosen beam and code [B, k] lead to, int32; n_l, which has no children, for -inf."""
    batch, k = chosen.codes.shape
    out = torch.empty(batch, k, dtype=torch.int32, device=nodes.device)
    block = min(k, 128)
    _descend[(batch, k // block)](
        chosen.scores,
        chosen.beams,
        chosen.codes,
        nodes,
        prefixes.first[level],
        prefixes.codes[level],
        out,
        nodes.shape[1],
        k,
        prefixes.codes[level].shape[0],
        STEPS=prefixes.fan_out[level].bit_length(),
        BLOCK=block,
        num_warps=1,
        **OVERLAPPED,
    )
    return out


@triton.jit
def _lower_bound(base, low, high, wanted, inside, STEPS: tl.constexpr):
    """The first place in [low, high) of the ascending base whose value is not below wanted, else high."""
    for _ in tl.static_range(STEPS):
        active = inside & (low < high)
        middle = (low + high) // 2
        below = active & (tl.load(base + middle, active, 0) < wanted)
        high = tl.where(active & (below == 0), middle, high)
        low = tl.where(below, middle + 1, low)
    return low


@triton.jit
def _mark(
    bits, nodes, first, codes, items_under, used, beams, words, length,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    in_turn()
    row = tl.program_id(0)
    node = tl.load(nodes + row)
    end = tl.load(first + node + 1)
    begin = tl.load(first + node) + tl.program_id(1) * BLOCK
    if begin < end:
        child = begin + tl.arange(0, BLOCK)
        legal = child < end
        if used is not None:
            mine = used + (row // beams).to(tl.int64) * length
            low = tl.zeros([BLOCK], tl.int32)
            at = _lower_bound(mine, low, low + length, child, legal, STEPS)
            last = at + tl.load(items_under + child, legal, 1) - 1
            known = legal & (last < length)
            legal = legal & (tl.load(mine + last, known, -1) != child)
        code = tl.load(codes + child, legal, 0)
        word = bits + row.to(tl.int64) * words + code // 32
        tl.atomic_or(word, tl.full([BLOCK], 1, tl.int32) << (code % 32), legal, sem="relaxed")


@triton.jit
def _descend(
    scores, beams_of, codes_of, nodes, first, codes, out, beams, k, nobody,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    in_turn()
    request = tl.program_id(0).to(tl.int64)
    at = request * k + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    alive = tl.load(scores + at) > float("-inf")
    parent = tl.load(nodes + request * beams + tl.load(beams_of + at))
    wanted = tl.load(codes_of + at).to(tl.int32)
    begin, end = tl.load(first + parent), tl.load(first + parent + 1)
    child = _lower_bound(codes, begin, end, wanted, alive, STEPS)
    tl.store(out + at, tl.where(alive, child, nobody))
