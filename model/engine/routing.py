"""Which experts see which row, and the rows sorted by expert."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows
from model.engine.overlap import OVERLAPPED, in_turn

ROWS_TILE = 128
"""Rows of a tile of the grouped product: every expert's rows start at a multiple of it."""

_CHOOSING = 64  # tokens of a program that chooses experts
_COPYING = 8  # tokens of a program that copies rows
_CHUNK = 64  # tiles that a program names in one go


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
    """Rows sorted by expert. The shared experts' come first, in the tokens' own order, then the routed ones' in any.

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


def dispatch(rows: Rows, logits: Tensor, bias: Tensor, top_k: int, shared: int) -> tuple[Rows, Route]:
    """Each token's row copied to the places of its experts: rows [T, K] -> [tiles · ROWS_TILE, K], and the places.

    logits [T, E'] and bias [E] float32: the k experts of largest sigmoid + bias are chosen, of equal ones the lowest;
    their shares are of sigmoid alone. E' >= E: logits behind the E-th are of nobody and are not read. With shared
    experts the rows' storage has `capacity` rows, of which the first T stay where they are. In which order an expert
    gets its rows is not fixed, for no result depends on it.
    """
    tokens, stride = logits.shape
    experts = bias.shape[0]
    device, room = logits.device, capacity(tokens, shared, experts, top_k)
    width = triton.next_power_of_2(experts)
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=device)
    share = torch.empty(tokens, shared + top_k, dtype=torch.float32, device=device)
    tally = torch.zeros(width, dtype=torch.int32, device=device)
    sizes = {"TOP_K": top_k, "SHARED": shared, "WIDTH": width}
    _choose[(triton.cdiv(tokens, _CHOOSING),)](
        logits, bias, chosen, share, tally, tokens, experts, stride,
        TOKENS=_CHOOSING, num_warps=8, **sizes, **OVERLAPPED,
    )  # fmt: skip
    position = torch.empty(tokens, shared + top_k, dtype=torch.int32, device=device)
    tiles = torch.empty(room // ROWS_TILE, dtype=torch.int32, device=device)
    used = torch.empty(1, dtype=torch.int32, device=device)
    placed = rows if shared else _room_for(rows, room)
    words = rows.values.shape[1] * rows.values.element_size() // 4
    _copy[(triton.cdiv(tokens, _COPYING),)](
        rows.values.view(torch.int32), rows.scale, rows.square,
        placed.values.view(torch.int32), placed.scale, placed.square,
        chosen, tally, position, tiles, used, tokens, words, tiles.shape[0],
        triton.cdiv(tokens, ROWS_TILE) * ROWS_TILE,
        TOKENS=_COPYING, TILE=ROWS_TILE, CHUNK=_CHUNK, BLOCK=triton.next_power_of_2(words), **sizes, **OVERLAPPED,
    )  # fmt: skip
    return Rows(placed.values, placed.scale, placed.square), Route(position, share, ExpertTiles(tiles, used))


def _room_for(rows: Rows, room: int) -> Rows:
    """As many rows of the same kind."""

    def like(part: Tensor | None) -> Tensor | None:
        return None if part is None else torch.empty(room, device=part.device)

    values = torch.empty(room, rows.values.shape[1], dtype=rows.values.dtype, device=rows.values.device)
    return Rows(values, like(rows.scale), like(rows.square))


@triton.jit
def _choose(
    logits, bias, chosen, share, tally, tokens, experts, stride,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Each token's experts and their shares. chosen: WIDTH · (the token's number among the expert's) + expert."""
    in_turn()
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
    hot = ((left != start) & inside).to(tl.int32)
    total = tl.sum(tl.where(hot > 0, affinity, 0.0), 1)
    before = tl.atomic_add(tally + expert, tl.sum(hot, 0), sem="relaxed")
    number = before[None, :] + tl.cumsum(hot, 0) - hot
    left = start
    for k in tl.static_range(TOP_K):
        best = tl.argmax(left, 1, tie_break_left=True)
        mine = expert[None, :] == best[:, None]
        left = tl.where(mine, float("-inf"), left)
        code = tl.sum(tl.where(mine, number, 0), 1) * WIDTH + best.to(tl.int32)
        tl.store(chosen + token * TOP_K + k, code, here)
        part = tl.sum(tl.where(mine, affinity, 0.0), 1) / total
        tl.store(share + token * (SHARED + TOP_K) + SHARED + k, part, here)
    for j in tl.static_range(SHARED):
        tl.store(share + token * (SHARED + TOP_K) + j, tl.full([TOKENS], 1.0, tl.float32), here)


@triton.jit
def _copy(
    source, scale_in, square_in, target, scale_out, square_out, chosen, tally, position, tiles, used,
    tokens, words, n_tiles, padded,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows to their places, the places, and each tile's expert. padded: rows of a shared expert."""
    in_turn()
    this, programs, expert = tl.program_id(0), tl.num_programs(0), tl.arange(0, WIDTH)
    room = (tl.load(tally + expert) + TILE - 1) // TILE * TILE
    end = tl.cumsum(room, 0) + SHARED * padded
    if this == 0:
        tl.store(used, tl.max(end, 0) // TILE)
    for start in tl.range(this * CHUNK, n_tiles, programs * CHUNK):
        tile = start + tl.arange(0, CHUNK)
        passed = tl.sum((end[None, :] <= (tile * TILE)[:, None]).to(tl.int32), 1)
        owner = tl.where(tile * TILE < SHARED * padded, tile * TILE // padded, SHARED + passed)
        tl.store(tiles + tile, owner, tile < n_tiles)
    token = this * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    col = tl.arange(0, BLOCK)
    inside = here[:, None] & (col < words)[None, :]
    row = tl.load(source + token.to(tl.int64)[:, None] * words + col[None, :], inside)
    if scale_in is not None:
        scale = tl.load(scale_in + token, here)
    if square_in is not None:
        square = tl.load(square_in + token, here)
    for j in tl.static_range(SHARED + TOP_K):
        if j < SHARED:
            place = j * padded + token
        else:
            code = tl.load(chosen + token * TOP_K + (j - SHARED), here, 0)
            mine = expert[None, :] == (code % WIDTH)[:, None]
            place = tl.sum(tl.where(mine, (end - room)[None, :], 0), 1) + code // WIDTH
        tl.store(position + token * (SHARED + TOP_K) + j, place, here)
        if (j > 0) or (SHARED == 0):  # of shared experts the first finds the rows in place
            tl.store(target + place.to(tl.int64)[:, None] * words + col[None, :], row, inside)
            if scale_in is not None:
                tl.store(scale_out + place, scale, here)
            if square_in is not None:
                tl.store(square_out + place, square, here)
