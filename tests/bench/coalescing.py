"""Questions that travel together against one call each: throughput and latency of one variant behind Ray Serve.

    python tests/bench/coalescing.py [--seconds 5] [--out FILE]

The model is a stand-in that takes as long for a batch as for one question, as a GPU nearly does; everything else is the
service's own: its client, HAProxy, Ray Serve and the replica. Closed loops; both ways in one run, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replica import KEY, begin_table, closed_loop, keep, options, ray_serve, serve_stand_in, shown

from serving.client import CALLS, HttpVariantClient
from serving.variants import Ranker

BATCH, BATCH_S = 28, 0.02
HISTORY = [f"i{number}" for number in range(200)]
WAYS = {"together": {"calls": CALLS, "most": BATCH}, "one call each": {"calls": 256, "most": 1}}


@dataclass(frozen=True, slots=True)
class Scored:
    """An item and its score."""

    item_id: str
    score: float


class StandIn:
    """Answers any batch after BATCH_S."""

    catalogue = dict.fromkeys(HISTORY)

    def indexed(self, history: Any) -> Any:
        """As it is."""
        return history

    def best(self, known: Sequence[Any], k: int) -> list[list[Scored]]:
        """k items for each."""
        time.sleep(BATCH_S)
        return [[Scored(HISTORY[place], -float(place)) for place in range(k)] for _ in known]


def stand_in(_folder: str, _device: str) -> Ranker:
    """Instead of loading a checkpoint."""
    return StandIn()


def main() -> None:
    """Measure both ways at rising load; print, and write where asked."""
    told = options(__doc__)
    numbers: dict[str, float] = {}
    with ray_serve() as url:
        serve_stand_in(stand_in, BATCH)

        def answered(way: str, users: int, seconds: float) -> tuple[float, float]:
            return closed_loop(HttpVariantClient(url, KEY, **WAYS[way]), [HISTORY], users, seconds)

        answered("one call each", 4, 2.0)
        begin_table()
        for users in (1, 4, 28, 112):
            for way in WAYS:
                numbers |= shown(users, way, answered(way, users, told.seconds))
            together, apart = (numbers[f"{way.replace(' ', '_')}_{users}_per_s"] for way in WAYS)
            numbers[f"times_as_many_{users}"] = together / apart
    keep(numbers, told.out)


if __name__ == "__main__":
    main()
