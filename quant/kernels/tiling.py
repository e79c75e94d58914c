"""How wide the tiles of a dense product are."""

from __future__ import annotations

COLUMNS = (64, 96, 112, 128, 160, 176)
"""What there is to choose from."""

MOST_COLUMNS = 192
"""Also, where nothing is added to the product: registers do not suffice for both."""

_BESIDES = 48
"""A tile costs as much more than its columns. So the cheapest tiles of nine products (the mixture, the 8B and the 1B)
are the fastest of those tried on an H200."""


def tile_columns(row_tiles: int, outer: int, processors: int, *, adds: bool) -> int:
    """Columns of a tile so that the tiles of so many rows by `outer` columns go round the processors soonest."""

    def cost(columns: int) -> int:
        tiles = -(-outer // columns) * row_tiles
        return -(-tiles // processors) * (columns + _BESIDES)

    return min(COLUMNS if adds else (*COLUMNS, MOST_COLUMNS), key=cost)
