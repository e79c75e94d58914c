"""Which experts see which row, and where the rows of each expert are."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import (
    Mixed,
    Rows,
    expert_place,
    from_the_last,
    normalised,
    row_at,
    store_row,
    whole_row,
)
from model.engine.overlap import OVERLAPPED, in_turn

ROWS_TILE = 128
"""Rows of a tile of the grouped product: every expert's rows start at a multiple of it."""

_LOGITS = 64 * 64
"""Of a program that chooses experts, at most 64 rows: tensor cores are at their best there, all programs of a large
batch run at once, and the choice still fits into registers."""

_CHOOSING = {"CHUNK": 64, "num_warps": 4, "num_stages": 4}
"""Columns that such a program looks at in one go, three more being under way."""

_LEAST_WIDTH = 16  # columns of a product


@dataclass(frozen=True, slots=True, eq=False)
class ExpertTiles:
    """The expert of each tile of ROWS_TILE rows, and whose they are.

    expert, filled and source [tiles] int32, of which the first used [1] int32 count; the rest may be anything. The
    first `filled` rows of a tile are somebody's: those of the tokens token[source], token[source + 1] and so on, or
    where the source is negative, as of experts that every row sees, of the token -1 - source and those behind it.
    """

    expert: Tensor
    filled: Tensor
    source: Tensor
    used: Tensor
    token: Tensor

    @property
    def rows(self) -> int:
        """Rows that a buffer needs."""
        return self.expert.shape[0] * ROWS_TILE


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The experts of each token, and where each expert's rows begin.

    chosen [T, k] int32: W · (the token's number among the expert's) + expert. share [T, S+k] float32 for S shared and k
    routed experts. begin [W] int32. The shared experts' rows come first, in the tokens' own order, each expert's from a
    multiple of ROWS_TILE on, then the routed ones' in any: no result depends on it.
    """

    chosen: Tensor
    share: Tensor
    begin: Tensor
    tiles: ExpertTiles

    @property
    def shared(self) -> int:
        """Experts that see every row."""
        return self.share.shape[1] - self.chosen.shape[1]

    @property
    def places(self) -> Tensor:
        """[T, S+k] int64: where the rows of each token are, as kernels find them by `norm.expert_place`."""
        tokens, width = self.chosen.shape[0], self.begin.shape[0]
        token = torch.arange(tokens, device=self.chosen.device)[:, None]
        first = padded(tokens) * torch.arange(self.shared, device=self.chosen.device)
        return torch.cat([first + token, self.begin.long()[self.chosen.long() % width] + self.chosen // width], dim=1)

    def mixed(self, rows: Rows) -> Mixed:
        """What the experts gave, to be summed by token."""
        return Mixed(rows, self.chosen, self.begin, self.share, padded(self.chosen.shape[0]))


def capacity(tokens: int, shared: int, routed: int, top_k: int) -> int:
    """Rows that always suffice, whatever is chosen."""
    if not routed:
        return shared * padded(tokens)
    spread = min(routed, tokens * top_k) * (ROWS_TILE - 1) + tokens * top_k
    return shared * padded(tokens) + padded(spread)


def padded(tokens: int) -> int:
    """Rows of the tiles that hold so many."""
    return (tokens + ROWS_TILE - 1) // ROWS_TILE * ROWS_TILE


def tally_size(experts: int) -> int:
    """Numbers of a tally: of each expert, a power of two that tensor cores have, and one more; none without experts."""
    return _width(experts) + 1 if experts else 0


def _width(experts: int) -> int:
    return int(max(_LEAST_WIDTH, triton.next_power_of_2(experts)))


@dataclass(frozen=True, slots=True, eq=False)
class Router:
    """How experts are chosen, `top_k` of the E routed ones besides the `shared`: weight [E, d] 16 bit, in which the
    norm's weights are already, and bias [E] float32."""

    weight: Tensor
    bias: Tensor
    top_k: int
    shared: int


def choose(h: Tensor, eps: float, router: Router, tally: Tensor | None = None) -> Choice:
    """The experts of RMSNorm(h) · gamma. h [T, d] 16 bit, contiguous.

    The k experts of largest sigmoid + bias are chosen, of equal ones the lowest; their shares are of sigmoid alone.
    Logits are h times the router, summed in float32 and divided by h's root mean square at the end, so that tensor
    cores take h as it is. The norm's own rows are rounded after the division, and the router before gamma is in it:
    whoever multiplied those would see slightly other numbers.

    tally: zeros [tally_size(E)] int32 for this call alone, made here where they are not given.
    """
    tokens, d = h.shape
    experts, top_k, shared = router.bias.shape[0], router.top_k, router.shared
    if tally is None:
        tally = torch.zeros(tally_size(experts), dtype=torch.int32, device=h.device)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.int32, device=h.device)

    width, count = _width(experts), capacity(tokens, shared, experts, top_k) // ROWS_TILE
    share = torch.empty(tokens, shared + top_k, dtype=torch.float32, device=h.device)
    tiles = ExpertTiles(empty(count), empty(count), empty(count), empty(1), empty(experts * tokens))
    choice = Choice(empty(tokens, top_k), share, empty(width), tiles)
    rows = min(64, max(16, _LOGITS // width))
    _choose[(triton.cdiv(tokens, rows),)](
        h, router.weight, router.bias, choice.chosen, share, tally, choice.begin,
        tiles.expert, tiles.filled, tiles.source, tiles.used, tiles.token,
        tokens, experts, d, eps, padded(tokens),
        TOP_K=top_k, SHARED=shared, WIDTH=width, TOKENS=rows, TILE=ROWS_TILE, **_CHOOSING, **OVERLAPPED,
    )  # fmt: skip
    return choice


def norm_dispatch(h: Tensor, gamma: Tensor, eps: float, choice: Choice, *, eight: bool) -> Rows:
    """RMSNorm(h) · gamma, each row at the places of its experts: h [T, d] -> [tiles · ROWS_TILE, d].

    The rows are `add_norm`'s.
    """
    tokens, d = h.shape
    room = choice.tiles.rows
    values = torch.empty(room, d, dtype=torch.float8_e4m3fn if eight else h.dtype, device=h.device)
    scale = torch.empty(room, device=h.device) if eight else None
    _norm_dispatch[(tokens,)](
        h, gamma, values, scale, choice.chosen, choice.begin, eps, padded(tokens),
        TOP_K=choice.chosen.shape[1], SHARED=choice.shared, WIDTH=choice.begin.shape[0], **whole_row(d), **OVERLAPPED,
    )  # fmt: skip
    return Rows(values, scale)


@triton.jit
def _choose(
    h, router, bias, chosen, share, tally, begin, tile_expert, tile_filled, tile_source, used, token_of,
    tokens, experts, d, eps, padded,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The last program to be done knows all counts, and plans the tiles. padded: rows of a shared expert."""
    in_turn()
    token = from_the_last() * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, WIDTH)
    here = token < tokens
    row = token.to(tl.int64)[:, None] * d
    logits = tl.zeros([TOKENS, WIDTH], tl.float32)
    squares = tl.zeros([TOKENS, CHUNK], tl.float32)
    for start in tl.range(0, d, CHUNK):
        col = start + tl.arange(0, CHUNK)
        x = tl.load(h + row + col[None, :], here[:, None] & (col < d)[None, :], 0.0)
        known = (expert < experts)[:, None] & (col < d)[None, :]
        weight = tl.load(router + expert[:, None] * d + col[None, :], known, 0.0)
        logits = tl.dot(x, weight.T, logits)
        squares += x.to(tl.float32) * x.to(tl.float32)
    logits *= tl.rsqrt(tl.sum(squares, 1) / d + eps)[:, None]
    affinity = 1.0 / (1.0 + tl.exp(-logits))
    start = affinity + tl.load(bias + expert, expert < experts, 0.0)[None, :]
    start = tl.where((expert < experts)[None, :], start, float("-inf"))
    left, hot = start, tl.zeros([TOKENS, WIDTH], tl.int1)
    best: tl.tuple = ()
    part: tl.tuple = ()
    for k in tl.static_range(TOP_K):
        top = left == tl.max(left, 1)[:, None]
        first = tl.min(tl.where(top, expert[None, :], WIDTH), 1)
        best += (tl.minimum(first, experts - 1),)  # the last where nothing is a number
        mine = expert[None, :] == best[k][:, None]
        part += (tl.sum(tl.where(mine, affinity, 0.0), 1),)
        left = tl.where(mine, float("-inf"), left)
        hot |= mine
    hot &= here[:, None]
    before = tl.atomic_add(tally + expert, tl.sum(hot.to(tl.int32), 0), sem="relaxed")
    above = token[None, :] < token[:, None]  # times `hot`: how many of the rows above chose the same expert
    number = before[None, :] + tl.dot(above.to(tl.float16), hot.to(tl.float16)).to(tl.int32)
    total = part[0]
    for k in tl.static_range(1, TOP_K):
        total += part[k]
    for k in tl.static_range(TOP_K):
        mine = expert[None, :] == best[k][:, None]
        place = tl.sum(tl.where(mine, number, 0), 1)
        tl.store(chosen + token * TOP_K + k, place * WIDTH + best[k], here)
        tl.store(token_of + best[k] * tokens + place, token, here)
        tl.store(share + token * (SHARED + TOP_K) + SHARED + k, part[k] / total, here)
    for j in tl.static_range(SHARED):
        tl.store(share + token * (SHARED + TOP_K) + j, tl.full([TOKENS], 1.0, tl.float32), here)
    tl.debug_barrier()
    if tl.atomic_add(tally + WIDTH, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        count = tl.atomic_add(tally + expert, tl.zeros([WIDTH], tl.int32), sem="relaxed")
        _plan(count, begin, tile_expert, tile_filled, tile_source, used, tokens, padded, SHARED, TILE, CHUNK)


@triton.jit
def _plan(
    count, begin, tile_expert, tile_filled, tile_source, used, tokens, padded,
    SHARED: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """count [WIDTH]: rows of each expert -> where they begin, and each tile's expert and rows."""
    room = (count + TILE - 1) // TILE * TILE
    end = SHARED * padded + tl.cumsum(room, 0)
    start = end - room
    tl.store(begin + tl.arange(0, count.shape[0]), start)
    tl.store(used, (SHARED * padded + tl.sum(room, 0)) // TILE)
    routed = tl.arange(0, count.shape[0])
    for done in tl.range(0, tl.max(room, 0), TILE):
        tile, there = (start + done) // TILE, done < room
        tl.store(tile_expert + tile, SHARED + routed, there)
        tl.store(tile_filled + tile, tl.minimum(count - done, TILE), there)
        tl.store(tile_source + tile, routed * tokens + done, there)
    of_all = SHARED * padded // TILE
    for one in tl.range(0, of_all, CHUNK):
        tile = one + tl.arange(0, CHUNK)
        first = tile * TILE
        tl.store(tile_expert + tile, first // padded, tile < of_all)
        tl.store(tile_filled + tile, tl.minimum(tokens - first % padded, TILE), tile < of_all)
        tl.store(tile_source + tile, -1 - first % padded, tile < of_all)


@triton.jit
def _norm_dispatch(
    h, gamma, values, scale, chosen, begin, eps, padded,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A row to its places. padded: rows of a shared expert."""
    in_turn()
    token = tl.program_id(0)
    row = row_at(h, token.to(tl.int64), D, CHUNK)
    row, factor, s = normalised(row, gamma, eps, D, CHUNK, values.dtype.element_ty)
    for j in tl.static_range(SHARED + TOP_K):
        place = expert_place(chosen, begin, token, j, padded, TOP_K, SHARED, WIDTH)
        store_row(values, place.to(tl.int64), row, factor, D, CHUNK)
        if scale is not None:
            tl.store(scale + place, s)
