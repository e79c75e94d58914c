"""E4M3 arithmetic: max-abs scales, rounding, encoding and decoding per row, tensor and block.

E4M3 ("fn", OCP 8-bit floating point, no infinities): 1 sign, 4 exponent (bias 7) and 3 mantissa bits. Largest value
448, smallest normal 2^-6, subnormals in steps of 2^-9, one NaN per sign. A scale s is chosen such that the largest
magnitude it covers becomes 448; the code of x is round(x / s), to nearest, ties to even.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantError

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SCALE_FLOOR = 2.0**-100
"""Scale of rows that are all zero: positive, so that nothing divides by zero, and without effect on zeros."""

_PIECE = 2**20  # elements compared at a time
_EXPONENT_BITS = 0x7F800000  # of a float32
_SMALLEST_NORMAL = 2.0**-6
_TO_MAGIC = 1.5 * 2.0**20  # adding 1.5·2^(e+20) to |y| < 2^(e+1) leaves float32 a last place worth 2^(e-3)


def require_finite(x: Tensor, name: str) -> None:
    """Raise NonFiniteError naming `name` when x holds NaN or infinity."""
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise NonFiniteError(f"{name}: {bad} of {x.numel()} values are NaN or infinite")


def holds_nan(codes: Tensor) -> bool:
    """Whether E4M3 codes hold NaN. Its two codes are the largest bytes: 0x7F of the signed ones, 0xFF of the others.

    A hundred times as fast on a CPU as reading the codes as numbers.
    """
    if not codes.numel():
        return False
    return int(codes.view(torch.int8).amax()) == 0x7F or int(codes.view(torch.uint8).amax()) == 0xFF


def row_scale(x: Tensor) -> Tensor:
    """x [..., K] float32 -> max|x| / 448 of each row [..., 1]: a weight's output channel, an input's token."""
    return x.abs().amax(dim=-1, keepdim=True).mul_(1.0 / E4M3_MAX).clamp_min_(SCALE_FLOOR)


def tensor_scale(x: Tensor) -> Tensor:
    """x [..., N, K] float32 -> one max|x| / 448 for everything, repeated as row scales [..., N, 1]."""
    scale = x.abs().amax().mul_(1.0 / E4M3_MAX).clamp_min_(SCALE_FLOOR)
    return scale.expand(*x.shape[:-1], 1).contiguous()


def block_scale(x: Tensor, block: tuple[int, int]) -> Tensor:
    """x [..., R, K] float32 -> max|x| / 448 of each r × c block [..., ceil(R/r), ceil(K/c)]; edges are smaller."""
    rows, columns = block
    if rows < 1 or columns < 1:
        raise QuantError(f"block: must be at least 1 × 1, got {rows} × {columns}")
    high, wide = -(-x.shape[-2] // rows), -(-x.shape[-1] // columns)
    padded = torch.nn.functional.pad(x.abs(), (0, wide * columns - x.shape[-1], 0, high * rows - x.shape[-2]))
    tiles = padded.view(*x.shape[:-2], high, rows, wide, columns)
    return tiles.amax(dim=(-3, -1)).mul_(1.0 / E4M3_MAX).clamp_min_(SCALE_FLOOR)


def spread_blocks(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Block scales -> one scale per element of `shape`."""
    wide = scale.repeat_interleave(block[0], dim=-2)[..., : shape[-2], :]
    return wide.repeat_interleave(block[1], dim=-1)[..., : shape[-1]]


def encode(y: Tensor) -> Tensor:
    """Scaled values (any float dtype) -> E4M3 codes; beyond ±448 saturates, NaN stays NaN."""
    return y.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def round_in_range(y: Tensor) -> Tensor:
    """float32 y with |y| <= 464 -> the nearest E4M3 value, still float32; the fast twin of encode and decode.

    Rounding is float32's own: a number 1.5·2^(e+20) is added and taken away again, with 2^e the leading power of
    two of y and at least 2^-6, so that the sum's last place is the E4M3 step at y. Reading the 8-bit type back is
    what makes the other way up to three times as slow on a CPU. Overwrites y.
    """
    mask, _ = _constants(y.device)
    power = torch.bitwise_and(y.view(torch.int32), mask).view(torch.float32).clamp_min_(_SMALLEST_NORMAL)
    return y.add_(power, alpha=_TO_MAGIC).sub_(power, alpha=_TO_MAGIC)


def quantise(x: Tensor, scale: Tensor) -> Tensor:
    """x and a scale that broadcasts to it -> E4M3 codes of x / scale."""
    return encode(x.float() / scale)


def dequantise(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """E4M3 codes and a scale that broadcasts to them -> codes · scale."""
    return (codes.float() * scale).to(dtype)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., K] float32 -> (E4M3 values of x / s as float32 [..., K], s [..., 1]), one dynamic scale per row.

    The scales are those of `row_scale`; one buffer serves for the magnitudes and for the quotients.
    """
    buffer = x.abs()
    scale = buffer.amax(dim=-1, keepdim=True).mul_(_constants(x.device)[1]).clamp_min_(SCALE_FLOOR)
    return round_in_range(torch.div(x, scale, out=buffer)), scale


def through_e4m3(x: Tensor) -> Tensor:
    """x [..., K] rounded through E4M3, one dynamic scale per row; scales put back, in x's own dtype."""
    values, scale = round_rows(x.float())
    return values.mul_(scale).to(x.dtype)


def round_runs(x: Tensor, run: int) -> Tensor:
    """x [T, K] float32 -> x rounded through E4M3 with one scale for each 1 × `run` piece of a row; scales put back."""
    scale = spread_blocks(block_scale(x, (1, run)), (1, run), x.shape)
    return round_in_range(x / scale).mul_(scale)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The exponent's bits of a float32, and 1/448: as tensors, for a Python number costs as much as the arithmetic."""
    with torch.inference_mode(False):
        mask = torch.tensor(_EXPONENT_BITS, dtype=torch.int32, device=device)
        return mask, torch.tensor(1.0 / E4M3_MAX, device=device)


def sqnr_db(signal: Tensor, approximation: Tensor) -> float:
    """10·log10(sum x² / sum (x - x̂)²) in double precision; infinite when equal, raises QuantError on unlike shapes."""
    return sqnr_db_of_parts([(signal, approximation)])


def sqnr_db_of_parts(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The same of all (signal, approximation) together; in pieces, so that a large weight needs no double copies."""
    power = noise = 0.0
    for signal, approximation in pairs:
        if signal.shape != approximation.shape:
            raise QuantError(f"sqnr: shapes {tuple(signal.shape)} and {tuple(approximation.shape)} differ")
        pieces = zip(*(torch.split(part.reshape(-1), _PIECE) for part in (signal, approximation)), strict=True)
        for exact, near in ((x.double(), y.double()) for x, y in pieces):
            power += float(exact.square().sum())
            noise += float((exact - near).square().sum())
    return 10.0 * math.log10(power / noise) if power > 0.0 and noise > 0.0 else _edge_db(power, noise)


def _edge_db(power: float, noise: float) -> float:
    """Where the logarithm has no value of its own: equal, nothing but noise, or not a number."""
    if math.isnan(power) or math.isnan(noise):
        return math.nan
    return -math.inf if noise > 0.0 else math.inf
