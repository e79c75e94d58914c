"""The places of the k largest of many keys, in the order of the places.

The k-th largest key is looked for among those keys that are not below the k-th largest of some keys: few beside the k
themselves. Lost candidates, at -inf, are most of all where few items are left, and are looked at only to fill up.
On Hopper a kernel in CUDA C++ does it (`largest.cu`), on other devices, and under the interpreter, Triton's here.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are typed by Triton, not by Python)

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.engine.cuda_module import Kernel, address, is_hopper, load_files, number
from model.engine.overlap import OVERLAPPED, in_turn

_LANES, _CHUNK, _SOME = 2048, 4096, 1024
"""Keys that a program looks at in one go: to find a lower bound, to pick those that reach it, and of those."""

_STAGES = 4  # of which all but one are on their way
_LOST = tl.constexpr(-2139095041)  # the key of -inf
_BOUND_BITS = tl.constexpr(20)  # of a lower bound that are looked for: of 32 bits, sign, exponent and half of the rest
_WARPS = 8
_THREADS = 1024
_MOST_KEYS = 1 << 18  # a bit of shared memory for each


def largest(keys: Tensor, k: int, bound: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """keys [B, n] -> the places [B, k] int32 of the k largest, in ascending order, of equal keys the first, behind them
    lost ones where there are no others; and the k-th largest [B], or less than any. bound [B] int32: none of the k that
    are not lost is below it."""
    batch, n = keys.shape
    places = torch.empty(batch, k, dtype=torch.int32, device=keys.device)
    least = torch.empty(batch, dtype=torch.int32, device=keys.device)
    left = torch.empty(batch, 2, n, dtype=torch.int32, device=keys.device)
    if is_hopper(keys.device) and n <= _MOST_KEYS:
        kernel = _kernel(keys.device.index)
        kernel.launch(batch, _THREADS, [*map(address, (keys, bound, left, places, least)), number(n), number(k)])
        return places, least
    room = triton.next_power_of_2(n)
    sizes = {"LANES": min(_LANES, room), "CHUNK": min(_CHUNK, room), "SOME": min(_SOME, room), "STAGES": _STAGES}
    _find[(batch,)](keys, bound, left, places, least, n, k, **sizes, num_warps=_WARPS, **OVERLAPPED)
    return places, least


@functools.cache
def _kernel(_device: int | None) -> Kernel:
    macros: dict[str, int | str] = {"THREADS": _THREADS, "LOST": f"({_LOST.value})"}
    return load_files("model.engine", ["largest.cu"], "largest", macros, [], _MOST_KEYS // 8)


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
