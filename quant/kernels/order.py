"""In which order matrices are stored so that what a thread computes is what the same thread needs or stores next.

A warpgroup's product of 64 rows leaves thread t of each warp with the columns 8j + 2q + e of its rows, q being t % 4,
while it takes bytes 4q to 4q + 3 and 16 + 4q to 19 + 4q of each 32 as its part of a first operand, and writes sixteen
bytes side by side at a time. Instead of exchanging numbers between threads the columns are given other meanings.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEAD_DIM = 128
"""The only head width that the attention kernel has."""

KEYS = 128
"""Keys of a tile of the attention; storage is padded to a multiple of it."""

DEPTH = 128
"""Products sum up in steps of this many: widths must be multiples of it."""

STORED_CODE = 2.0**-4
"""Root mean square of a stored row's codes, or of those of a context's head, but for a factor of √2 at most: there few
bits change from one Gaussian number's code to the next's (3.1 of eight, as they are spread; 3.3 at 0.75), and only the
smallest lose digits."""

MOST_A_PRODUCT = 0.1
"""A sum of products of a normed row and a stored one is no greater, for each of the products."""

WIDEST = 32768
"""Sums of so many, times a gate's factor, stay within 16 bit."""

UNIT = 32
"""Rows of a matrix are reordered among so many, unless it is gated."""

GATED_UNIT = 128
"""Those of a gated one."""

COLUMNS = 176
"""Columns of a tile of the experts' products: every expert's rows are padded to a multiple of it, as 1408 is one. The
wider, the fewer bytes an operation costs."""

GATED_COLUMNS = 256
"""Those of gated products, whose sums in 16 bit take half the registers."""


def key_order(device: torch.device | str = "cpu") -> Tensor:
    """[32]: the key that each stored row of 32 holds."""
    row = torch.arange(32, device=device)
    j, q, e = row // 8, row % 8 // 2, row % 2
    return 16 * (j // 2) + 4 * q + 2 * (j % 2) + e


def feature_order(device: torch.device | str = "cpu") -> Tensor:
    """[128]: the feature that each stored row of values holds."""
    row = torch.arange(HEAD_DIM, device=device)
    j, q, e = row // 8, row % 8 // 2, row % 2
    return 64 * (j // 8) + 16 * q + 2 * (j % 8) + e


def packed(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, G, N, 128] of keys and values, any order -> the storage of `PackedContext`."""
    batch, groups, length, width = key.shape
    room = -(-length // KEYS) * KEYS
    values = torch.zeros(batch, groups, width, room, dtype=torch.uint8, device=key.device)
    values[..., :length] = value.view(torch.uint8)[..., feature_order(key.device)].transpose(-1, -2)
    return in_key_order(key), values.view(key.dtype)


def in_key_order(codes: Tensor) -> Tensor:
    """Codes [B, G, N, 128] as the keys of `PackedContext` are stored."""
    batch, groups, length, width = codes.shape
    room = -(-length // KEYS) * KEYS
    rows = torch.zeros(batch, groups, room, width, dtype=torch.uint8, device=codes.device)
    rows[:, :, :length] = codes.view(torch.uint8)
    order = (32 * torch.arange(room // 32, device=codes.device)[:, None] + key_order(codes.device)).flatten()
    return rows[:, :, order].view(codes.dtype)


def row_order(*, gated: bool) -> Tensor:
    """[UNIT], or of a gated product [GATED_UNIT]: the output that each stored row of them makes.

    A thread has eight outputs of a unit side by side, or sixteen of a gated one, by turns two gates and their two
    linear parts; a gated product's row 2i is the gate and 2i + 1 the linear part of output i.
    """
    row = torch.arange(GATED_UNIT if gated else UNIT)
    j, q, e = row // 8, row % 8 // 2, row % 2
    if not gated:
        return 8 * q + 2 * j + e
    return 2 * (16 * q + 2 * (j // 2) + e) + j % 2


def in_row_order(codes: Tensor, columns: int, *, gated: bool) -> Tensor:
    """Codes [E, N, K] of one byte -> [E, N', K]: rows as in `row_order`, those behind the N-th zero, N' a multiple of
    `columns`. N is a multiple of UNIT, unless gated."""
    experts, n, k = codes.shape
    stored = -(-n // columns) * columns
    order = row_order(gated=gated)
    blocks = -(-stored // order.shape[0])
    raw = torch.zeros(experts, blocks * order.shape[0], k, dtype=torch.uint8, device=codes.device)
    raw[:, :n] = codes.view(torch.uint8)
    places = (order.shape[0] * torch.arange(blocks)[:, None] + order).flatten()[:stored]
    return raw[:, places.to(codes.device)].view(codes.dtype)
