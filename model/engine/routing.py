"""Which experts see which row, and the rows sorted by expert."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.norm import Rows, in_eight, normalised
from model.engine.overlap import OVERLAPPED, in_turn

ROWS_TILE = 128
"""Rows of a tile of the grouped product: every expert's rows start at a multiple of it."""

_LOGITS = 64 * 64
"""Of a program that chooses experts, at most 64 rows: tensor cores are at their best there, all programs of a large
batch run at once, and the choice still fits into registers."""

_CHOOSING = {"CHUNK": 64, "num_warps": 4, "num_stages": 4}
"""Columns that such a program looks at in one go, three more being under way."""

_MOVING = {"TOKENS": 1, "CHUNK": 8}
"""Whole rows of a program that moves them, and tiles that it names in one go."""

_COLUMNS = 2048
"""Of a warp of such a program, which holds them in registers: a row that one warp holds needs no barrier."""

_LEAST_WIDTH = 16  # columns of a product


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The experts of each token, and how many tokens chose each.

    chosen [T, k] int32: W · (the token's number among the expert's) + expert. share [T, S+k] float32 for S shared and k
    routed experts. tally [W] int32, of which the first `experts` count.
    """

    chosen: Tensor
    share: Tensor
    tally: Tensor
    experts: int

    @property
    def shared(self) -> int:
        """Experts that see every row."""
        return self.share.shape[1] - self.chosen.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertTiles:
    """The expert of each tile of ROWS_TILE rows.

    expert and filled [tiles] int32, of which the first used [1] int32 count; the rest may be anything. The first
    `filled` rows of a tile are somebody's.
    """

    expert: Tensor
    filled: Tensor
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


def tally_width(experts: int) -> int:
    """Numbers of a tally: a power of two that tensor cores have; none without experts."""
    return max(_LEAST_WIDTH, triton.next_power_of_2(experts)) if experts else 0


def add_choose(
    h: Tensor,
    add: Tensor,
    gamma: Tensor,
    eps: float,
    router: Tensor,
    bias: Tensor,
    top_k: int,
    shared: int,
    tally: Tensor | None = None,
) -> Choice:
    """h += add, in place; the experts of RMSNorm(h) · gamma. h and add [T, d] and router [E, d] 16 bit, contiguous.

    The k experts of largest sigmoid + bias [E] float32 are chosen, of equal ones the lowest; their shares are of
    sigmoid alone. Logits are h · gamma, rounded to 16 bit, times the router, summed in float32 and divided by h's root
    mean square at the end, so that one pass over h is enough. The norm's own rows are rounded after the division: a
    router that multiplied those would see slightly other numbers.

    tally: zeros [tally_width(E)] int32 for this call alone, made here where they are not given.
    """
    tokens, d = h.shape
    experts = bias.shape[0]
    if tally is None:
        tally = torch.zeros(tally_width(experts), dtype=torch.int32, device=h.device)
    chosen = torch.empty(tokens, top_k, dtype=torch.int32, device=h.device)
    share = torch.empty(tokens, shared + top_k, dtype=torch.float32, device=h.device)
    width = tally.shape[0]
    rows = min(64, max(16, _LOGITS // width))
    _add_choose[(triton.cdiv(tokens, rows),)](
        h, add, gamma, router, bias, chosen, share, tally, tokens, experts, d, eps,
        TOP_K=top_k, SHARED=shared, WIDTH=width, TOKENS=rows, **_CHOOSING, **OVERLAPPED,
    )  # fmt: skip
    return Choice(chosen, share, tally, experts)


def norm_dispatch(h: Tensor, gamma: Tensor, eps: float, choice: Choice, *, eight: bool) -> tuple[Rows, Route]:
    """RMSNorm(h) · gamma, each row at the places of its experts: h [T, d] -> [tiles · ROWS_TILE, d], and the places.

    The rows are `add_norm`'s, in E4M3 with the squared length besides. In which order an expert gets its rows is not
    fixed, for no result depends on it.
    """
    tokens, d = h.shape
    top_k, shared = choice.chosen.shape[1], choice.shared
    room = capacity(tokens, shared, choice.experts, top_k)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=h.device)

    values = empty(room, d, dtype=torch.float8_e4m3fn if eight else h.dtype)
    scale, square = (empty(room, dtype=torch.float32) if eight else None for _ in range(2))
    position = empty(tokens, shared + top_k, dtype=torch.int32)
    expert, filled = (empty(room // ROWS_TILE, dtype=torch.int32) for _ in range(2))
    used = empty(1, dtype=torch.int32)
    block = triton.next_power_of_2(d)
    _norm_dispatch[(triton.cdiv(tokens, _MOVING["TOKENS"]),)](
        h, gamma, values, scale, square, choice.chosen, choice.tally, position, expert, filled, used,
        tokens, d, eps, room // ROWS_TILE, triton.cdiv(tokens, ROWS_TILE) * ROWS_TILE,
        TOP_K=top_k, SHARED=shared, WIDTH=choice.tally.shape[0], TILE=ROWS_TILE, BLOCK=block,
        num_warps=max(1, block // _COLUMNS), **_MOVING, **OVERLAPPED,
    )  # fmt: skip
    return Rows(values, scale, square), Route(position, choice.share, ExpertTiles(expert, filled, used))


@triton.jit
def _add_choose(
    h, add, gamma, router, bias, chosen, share, tally, tokens, experts, d, eps,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    in_turn()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    expert = tl.arange(0, WIDTH)
    here = token < tokens
    logits = tl.zeros([TOKENS, WIDTH], tl.float32)
    squares = tl.zeros([TOKENS, CHUNK], tl.float32)
    for start in tl.range(0, d, CHUNK):
        col = start + tl.arange(0, CHUNK)
        inside = here[:, None] & (col < d)[None, :]
        at = token.to(tl.int64)[:, None] * d + col[None, :]
        x = tl.load(h + at, inside, 0.0).to(tl.float32) + tl.load(add + at, inside, 0.0).to(tl.float32)
        stored = x.to(h.dtype.element_ty)
        tl.store(h + at, stored, inside)
        x = stored.to(tl.float32)
        squares += x * x
        x *= tl.load(gamma + col, col < d, 0.0).to(tl.float32)[None, :]
        known = (expert < experts)[:, None] & (col < d)[None, :]
        weight = tl.load(router + expert[:, None] * d + col[None, :], known, 0.0)
        logits = tl.dot(x.to(h.dtype.element_ty), weight.T, logits)
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
        code = tl.sum(tl.where(mine, number, 0), 1) * WIDTH + best[k]
        tl.store(chosen + token * TOP_K + k, code, here)
        tl.store(share + token * (SHARED + TOP_K) + SHARED + k, part[k] / total, here)
    for j in tl.static_range(SHARED):
        tl.store(share + token * (SHARED + TOP_K) + j, tl.full([TOKENS], 1.0, tl.float32), here)


@triton.jit
def _norm_dispatch(
    h, gamma, values, scale, square, chosen, tally, position, tile_expert, tile_filled, used,
    tokens, d, eps, n_tiles, padded,
    TOP_K: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows to their places, the places, and each tile's expert. padded: rows of a shared expert."""
    in_turn()
    this, programs, expert = tl.program_id(0), tl.num_programs(0), tl.arange(0, WIDTH)
    count = tl.load(tally + expert)
    room = (count + TILE - 1) // TILE * TILE
    end = SHARED * padded + tl.cumsum(room, 0)
    begin = end - room
    if this == 0:
        tl.store(used, (SHARED * padded + tl.sum(room, 0)) // TILE)
    for start in tl.range(this * CHUNK, n_tiles, programs * CHUNK):
        tile = start + tl.arange(0, CHUNK)
        first = tile * TILE
        into = first[:, None] - begin[None, :]
        mine = (into >= 0) & (into < room[None, :])
        filled = tl.sum(tl.where(mine, tl.minimum(count[None, :] - into, TILE), 0), 1)
        passed = tl.sum((end[None, :] <= first[:, None]).to(tl.int32), 1)
        of_all = first < SHARED * padded
        owner = tl.where(of_all, first // padded, SHARED + passed)
        tl.store(tile_expert + tile, owner, tile < n_tiles)
        filled = tl.where(of_all, tl.minimum(tokens - first % padded, TILE), filled)
        tl.store(tile_filled + tile, filled, tile < n_tiles)
    token = this * TOKENS + tl.arange(0, TOKENS)
    here = token < tokens
    col = tl.arange(0, BLOCK)
    inside = here[:, None] & (col < d)[None, :]
    x = tl.load(h + token.to(tl.int64)[:, None] * d + col[None, :], inside, 0.0).to(tl.float32)
    places: tl.tuple = ()
    for j in tl.static_range(SHARED):
        places += (j * padded + token,)
    for k in tl.static_range(TOP_K):
        code = tl.load(chosen + token * TOP_K + k, here, 0)
        places += (tl.gather(begin, code % WIDTH, 0) + code // WIDTH,)
    row = normalised(x, gamma, d, eps).to(h.dtype.element_ty)
    if scale is not None:
        row, s = in_eight(row.to(tl.float32))
        wide = row.to(tl.float32)
        length = tl.maximum(tl.sum(wide * wide, 1) * s * s, 1e-30)  # a row of zeros is divided by it
    for j in tl.static_range(SHARED + TOP_K):
        tl.store(position + token * (SHARED + TOP_K) + j, places[j], here)
        tl.store(values + places[j].to(tl.int64)[:, None] * d + col[None, :], row, inside)
        if scale is not None:
            tl.store(scale + places[j], s, here)
            tl.store(square + places[j], length, here)
