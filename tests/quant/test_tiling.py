"""How wide the tiles of a dense product are; the products themselves are in test_kernels_gpu.py."""

from __future__ import annotations

import pytest

from quant.kernels.tiling import tile_columns

PROCESSORS = 132


@pytest.mark.parametrize(
    ("row_tiles", "outer", "adds", "fastest"),
    [
        (112, 1408, True, 176),
        (112, 4224, False, 192),
        (16, 3584, True, 160),
        (16, 10752, False, 192),
        (4, 5376, True, 176),
    ],
)
def test_tiles_are_the_fastest_of_those_tried(row_tiles: int, outer: int, adds: bool, fastest: int) -> None:
    assert tile_columns(row_tiles, outer, PROCESSORS, adds=adds) == fastest


def test_few_tiles_are_spread_over_the_processors() -> None:
    assert tile_columns(4, 1792, PROCESSORS, adds=True) == 64
