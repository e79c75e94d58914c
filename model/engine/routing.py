"""Which expert sees which row, and where that row stands among the rows sorted by expert."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows

ROWS_TILE = 128
"""Rows of a tile of the grouped product: every expert's rows start at a multiple of it."""

_TOKENS = 64  # tokens of one program
_CHUNK = 64  # programs' counts, and tiles, that a program looks at in one go


@dataclass(frozen=True, slots=True, eq=False)
class ExpertTiles:
    """The expert of each tile of ROWS_TILE rows.

    expert [tiles] int32, of which the first used [1] int32 count; the rest may be anything.
    """

    expert: Tensor
    used: Tensor

    @property
    def rows(self) -> int:
        """Rows that a buffer needs."""
        return self.expert.shape[0] * ROWS_TILE


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Rows sorted by expert. The shared experts' come first, in the tokens' own order, then the routed ones'.

    position [T, S+k] int32 and share [T, S+k] float32 for S shared and k routed experts of a token.
    """

    position: Tensor
    share: Tensor
    tiles: ExpertTiles


def capacity(tokens: int, shared: int, routed: int, top_k: int) -> int:
    """Rows that always suffice, whatever is chosen."""
    padded = triton.cdiv(tokens, ROWS_TILE) * ROWS_TILE
    if not routed:
        return int(shared * padded)
    spread = min(routed, tokens * top_k) * (ROWS_TILE - 1) + tokens * top_k
    return int(shared * padded + triton.cdiv(spread, ROWS_TILE) * ROWS_TILE)


def route(logits: Tensor, bias: Tensor, top_k: int, shared: int) -> Route:
    """logits [T, E'] and bias [E] float32 -> the k experts of largest sigmoid + bias, shares by sigmoid alone.

    E' >= E: logits behind the E-th are of nobody and are not read. Of equal ones the lowest expert is chosen. Rows
    of an expert keep the tokens' order.
    """
    tokens, stride = logits.shape
    experts = bias.shape[0]
    room = capacity(tokens, shared, experts, top_k)
    device, programs = logits.device, triton.cdiv(tokens, _TOKENS)
    position = torch.empty(tokens, shared + top_k, dtype=torch.int32, device=device)
    share = torch.empty(tokens, shared + top_k, dtype=torch.float32, device=device)
    width = triton.next_power_of_2(experts)
    counts = torch.empty(programs, width, dtype=torch.int32, device=device)
    tiles = torch.empty(room // ROWS_TILE, dtype=torch.int32, device=device)
    used = torch.empty(1, dtype=torch.int32, device=device)
    padded = triton.cdiv(tokens, ROWS_TILE) * ROWS_TILE
    sizes = {"TOP_K": top_k, "SHARED": shared, "WIDTH": width, "TOKENS": _TOKENS, "num_warps": 8}
    _choose[(programs,)](logits, bias, position, share, counts, tokens, experts, stride, **sizes)
    _place[(programs,)](
        counts, tiles, used, position, tokens, programs, tiles.shape[0], padded, TILE=ROWS_TILE, CHUNK=_CHUNK, **sizes
    )
    return Route(position, share, ExpertTiles(tiles, used))


def spread(rows: Rows, route: Route, shared: int) -> Rows:
    """Copy each token's row to its places; with shared experts the first T rows are in place already."""
    tokens, places = route.position.shape
    width = rows.values.shape[1] * rows.values.element_size() // 2
    if shared:
        values, scale, square = rows.values, rows.scale, rows.square
    else:
        values = torch.empty(route.tiles.rows, rows.values.shape[1], dtype=rows.values.dtype, device=rows.values.device)
        scale, square = (
            None if part is None else torch.empty(route.tiles.rows, device=part.device)
            for part in (rows.scale, rows.square)
        )
    _spread[(tokens,)](
        rows.values.view(torch.int16), rows.scale, rows.square, values.view(torch.int16), scale, square,
        route.position, width, FIRST=1 if shared else 0, PLACES=places, BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    return Rows(values, scale, square)


@triton.jit
def _choose(
    logits, bias, position, share, counts, tokens, experts, stride,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Chosen experts into `position` for now, their shares, and how many tokens of this program chose each."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, WIDTH)
    here = token < tokens
    inside = here[:, None] & (expert < experts)[None, :]
    x = tl.load(logits + token[:, None] * stride + expert[None, :], inside, 0.0).to(tl.float32)
    affinity = 1.0 / (1.0 + tl.exp(-x))
    start = affinity + tl.load(bias + expert, expert < experts, 0.0)[None, :]
    start = tl.where((expert < experts)[None, :], start, float("-inf"))
    left = start
    for _ in tl.static_range(TOP_K):
        best = tl.argmax(left, 1, tie_break_left=True)
        left = tl.where(expert[None, :] == best[:, None], float("-inf"), left)
    hot = (left != start) & inside
    total = tl.sum(tl.where(hot, affinity, 0.0), 1)
    left = start
    for k in tl.static_range(TOP_K):
        best = tl.argmax(left, 1, tie_break_left=True)
        chosen = expert[None, :] == best[:, None]
        left = tl.where(chosen, float("-inf"), left)
        at = token * (SHARED + TOP_K) + SHARED + k
        tl.store(position + at, best.to(tl.int32), here)
        tl.store(share + at, tl.sum(tl.where(chosen, affinity, 0.0), 1) / total, here)
    for j in tl.static_range(SHARED):
        tl.store(share + token * (SHARED + TOP_K) + j, tl.full([TOKENS], 1.0, tl.float32), here)
    tl.store(counts + tl.program_id(0) * WIDTH + expert, tl.sum(hot.to(tl.int32), 0))


@triton.jit
def _place(
    counts, tiles, used, position, tokens, programs, n_tiles, padded,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Replace chosen experts by rows, and name each tile's expert.

    Every program adds up all counts for itself: reading them costs less than a launch that would do it for all.
    """
    this, expert = tl.program_id(0), tl.arange(0, WIDTH)
    count = tl.zeros([WIDTH], tl.int32)
    before = tl.zeros([WIDTH], tl.int32)
    for start in tl.range(0, programs, CHUNK):
        program = start + tl.arange(0, CHUNK)
        part = tl.load(counts + program[:, None] * WIDTH + expert[None, :], (program < programs)[:, None], 0)
        count += tl.sum(part, 0)
        before += tl.sum(tl.where((program < this)[:, None], part, 0), 0)
    room = (count + TILE - 1) // TILE * TILE
    end = tl.cumsum(room, 0) + SHARED * padded
    begin = end - room + before
    if this == 0:
        tl.store(used, tl.max(end, 0) // TILE)
    for start in tl.range(this * CHUNK, n_tiles, programs * CHUNK):
        tile = start + tl.arange(0, CHUNK)
        passed = tl.sum((end[None, :] <= (tile * TILE)[:, None]).to(tl.int32), 1)
        owner = tl.where(tile * TILE < SHARED * padded, tile * TILE // padded, SHARED + passed)
        tl.store(tiles + tile, owner, tile < n_tiles)
    token = this * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    hot = tl.zeros([TOKENS, WIDTH], tl.int32)
    for k in tl.static_range(TOP_K):
        chosen = tl.load(position + token * (SHARED + TOP_K) + SHARED + k, here, -1)
        hot += (chosen[:, None] == expert[None, :]).to(tl.int32)
    row = begin[None, :] + tl.cumsum(hot, 0) - hot
    for k in tl.static_range(TOP_K):
        at = position + token * (SHARED + TOP_K) + SHARED + k
        chosen = tl.load(at, here, -1)
        tl.store(at, tl.sum(tl.where(chosen[:, None] == expert[None, :], row, 0), 1), here)
    for j in tl.static_range(SHARED):
        tl.store(position + token * (SHARED + TOP_K) + j, j * padded + token, here)


@triton.jit
def _spread(
    source, scale_in, square_in, target, scale_out, square_out, position, width,
    FIRST: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    row = tl.load(source + token * width + col, col < width)
    if scale_in is not None:
        scale = tl.load(scale_in + token)
    if square_in is not None:
        square = tl.load(square_in + token)
    for j in tl.static_range(FIRST, PLACES):
        place = tl.load(position + token * PLACES + j).to(tl.int64)
        tl.store(target + place * width + col, row, col < width)
        if scale_in is not None:
            tl.store(scale_out + place, scale)
        if square_in is not None:
            tl.store(square_out + place, square)
