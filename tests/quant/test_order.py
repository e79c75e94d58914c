"""The storage orders against what a warpgroup's product and its first operand look like by PTX's description."""

from __future__ import annotations

import pytest
import torch

from quant.kernels.order import (
    COLUMNS,
    GATED_COLUMNS,
    GATED_UNIT,
    HEAD_DIM,
    KEYS,
    UNIT,
    feature_order,
    in_row_order,
    key_order,
    packed,
    row_order,
)


def columns_of(thread: int, columns: int) -> list[int]:
    """Columns of the result that a thread of a warp holds, in the order of its registers (PTX, wgmma, matrix D)."""
    return [8 * j + 2 * (thread % 4) + e for j in range(columns // 8) for e in range(2)]


def bytes_of(thread: int) -> list[int]:
    """Positions in 32 bytes of the first operand that a thread holds, in the order of its registers (matrix A)."""
    return [16 * half + 4 * (thread % 4) + i for half in range(2) for i in range(4)]


@pytest.mark.parametrize("thread", range(4))
def test_a_threads_scores_are_the_weights_that_it_must_hand_over(thread: int) -> None:
    order = key_order().tolist()
    assert [order[column] for column in columns_of(thread, 32)] == bytes_of(thread)


@pytest.mark.parametrize("thread", range(4))
def test_a_threads_mixed_features_lie_sixteen_side_by_side(thread: int) -> None:
    order = feature_order().tolist()
    held = [order[column] for column in columns_of(thread, HEAD_DIM)]
    assert held == [64 * half + 16 * thread + i for half in range(2) for i in range(16)]


@pytest.mark.parametrize("thread", range(4))
def test_a_threads_gated_outputs_lie_sixteen_side_by_side_two_gates_before_their_linear_parts(thread: int) -> None:
    order = row_order(gated=True).tolist()
    held = [order[column] for column in columns_of(thread, GATED_UNIT)]
    pairs = [(16 * thread + i, 16 * thread + i + 1) for i in range(0, 16, 2)]
    assert held == [2 * output + linear for pair in pairs for linear in (0, 1) for output in pair]


@pytest.mark.parametrize("thread", range(4))
def test_a_threads_plain_outputs_lie_eight_side_by_side(thread: int) -> None:
    order = row_order(gated=False).tolist()
    assert [order[column] for column in columns_of(thread, UNIT)] == [8 * thread + i for i in range(8)]


@pytest.mark.parametrize("tile", [0, 1, 2, 7])
@pytest.mark.parametrize("thread", range(4))
def test_of_a_unit_that_two_tiles_share_each_has_four_of_a_threads_outputs(thread: int, tile: int) -> None:
    """As `plain_rows.cuh` takes them: every other tile of COLUMNS begins in the middle of a unit."""
    begin, order = tile * COLUMNS, row_order(gated=False).tolist()
    rows = [begin + column for column in columns_of(thread, COLUMNS)]
    held = [row // UNIT * UNIT + order[row % UNIT] for row in rows]
    at, odd = begin // UNIT * UNIT + 8 * thread, tile % 2
    units = [at + UNIT * (u + odd) + i for u in range(COLUMNS // UNIT) for i in range(8)]
    half = [at + 4 + i for i in range(4)] if odd else [at + UNIT * (COLUMNS // UNIT) + i for i in range(4)]
    assert held == (half + units if odd else units + half)


@pytest.mark.parametrize("order", [key_order(), feature_order(), row_order(gated=True), row_order(gated=False)])
def test_every_place_is_taken_once(order: torch.Tensor) -> None:
    assert torch.equal(order.sort().values, torch.arange(order.shape[0]))


@pytest.mark.parametrize("length", [1, 32, 130])
def test_packing_moves_every_code_to_its_place_and_pads_with_zeros(length: int) -> None:
    codes = torch.randint(1, 127, (2, 3, length, HEAD_DIM), dtype=torch.uint8).view(torch.float8_e4m3fn)
    key, value = packed(codes, codes)
    room = -(-length // KEYS) * KEYS
    assert key.shape == (2, 3, room, HEAD_DIM)
    assert value.shape == (2, 3, HEAD_DIM, room)
    raw, keys, values = codes.view(torch.uint8), key.view(torch.uint8), value.view(torch.uint8)
    keys_at, features = key_order().tolist(), feature_order().tolist()
    for row in range(room):
        source = row // 32 * 32 + keys_at[row % 32]
        expected = raw[:, :, source] if source < length else torch.zeros(2, 3, HEAD_DIM, dtype=torch.uint8)
        assert torch.equal(keys[:, :, row], expected)
    for row in range(HEAD_DIM):
        assert torch.equal(values[:, :, row, :length], raw[..., features[row]])
    assert not bool(values[..., length:].any())


@pytest.mark.parametrize("columns", [UNIT, COLUMNS])
def test_plain_rows_keep_their_order_however_wide_the_tiles_and_those_behind_the_last_are_zero(columns: int) -> None:
    codes = torch.randint(1, 127, (2, 7 * UNIT, 128), dtype=torch.uint8).view(torch.float8_e4m3fn)
    stored = in_row_order(codes, columns, gated=False).view(torch.uint8)
    assert stored.shape == (2, -(-7 * UNIT // columns) * columns, 128)
    order = row_order(gated=False).tolist()
    for row in range(stored.shape[1]):
        source = row // UNIT * UNIT + order[row % UNIT]
        there = source < 7 * UNIT
        expected = codes.view(torch.uint8)[:, source] if there else torch.zeros(2, 128, dtype=torch.uint8)
        assert torch.equal(stored[:, row], expected)


def test_gated_rows_are_ordered_by_unit_and_those_behind_the_last_are_zero() -> None:
    codes = torch.randint(1, 127, (2, 200, 128), dtype=torch.uint8).view(torch.float8_e4m3fn)
    stored = in_row_order(codes, GATED_COLUMNS, gated=True).view(torch.uint8)
    assert stored.shape == (2, GATED_COLUMNS, 128)
    order = row_order(gated=True).tolist()
    for row in range(GATED_COLUMNS):
        source = row // GATED_UNIT * GATED_UNIT + order[row % GATED_UNIT]
        expected = codes.view(torch.uint8)[:, source] if source < 200 else torch.zeros(2, 128, dtype=torch.uint8)
        assert torch.equal(stored[:, row], expected)
