"""Products of a few rows with a matrix in E4M3, as the first level has them: bound by reading the matrix."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from model.engine.cuda_module import Kernel, address, load_files, number, product_source, tensor_map
from model.engine.norm import Rows
from quant.kernels.order import DEPTH

MOST_ROWS = 64
"""Rows that one launch takes; of more, products are no longer bound by reading the matrix."""

_CHANNELS, _STAGES = 64, 8
_SPLITS, _BLOCKS = (4, 2, 1), 256  # more blocks than two a multiprocessor get into each other's way


def few_rows_product(rows: Rows, matrix: Tensor, scale: Tensor, onto: Tensor | None = None) -> Tensor:
    """rows [T, K] in E4M3 times matrix [N, K] in E4M3, in order.py's order, with scale [N]: [T, N] bfloat16.

    Sums are in float32; they are added to `onto` [T, N], in place, where that is given. The matrix is read before the
    stream's earlier work is done: that must not be what makes it.
    """
    values = rows.values
    tokens, k = values.shape
    width, steps = matrix.shape[0], k // DEPTH
    tiles = -(-width // _CHANNELS)
    split = next(split for split in _SPLITS if split == 1 or (tiles * split <= _BLOCKS and split <= steps))
    out = torch.empty(tokens, width, dtype=torch.bfloat16, device=values.device) if onto is None else onto
    room = next(room for room in (8, 16, 32, 64) if tokens <= room)
    _kernel(room, split, values.device.index).launch(
        tiles * split,
        160,
        [
            tensor_map(values, room),
            tensor_map(matrix, _CHANNELS),
            address(out), address(rows.scales), address(scale),
            *map(number, (tokens, width, steps, onto is not None)),
        ],
    )  # fmt: skip
    return out


@functools.cache
def _kernel(room: int, split: int, _device: int | None) -> Kernel:
    sizes = {"ROWS": room, "SPLIT": split, "STAGES": _STAGES}
    products, shared_bytes = [product_source("product_channels", room)], _STAGES * (_CHANNELS + room) * DEPTH + 1024
    return load_files("quant.kernels", ["few_rows.cu"], "few_rows", sizes, products, shared_bytes)
