"""A batch made ready while the device computes another, against one batch at a time: one replica behind Ray Serve.

    python tests/bench/batches.py [--seconds 5] [--out FILE]

The device is a stand-in: a lock, held for as long for a batch as for one question. Everything else is the service's
own: its client, HAProxy, Ray Serve, the replica, a catalogue of 100,000 items and what makes 512 of them ready for a
graph. Closed loops; both ways in one run. A replica that is given a GPU has two batches under way, any other one.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from replica import KEY, begin_table, closed_loop, keep, options, ray_serve, serve_stand_in, shown

from model.catalogue import Catalogue
from model.engine.buckets import bucket_for, padded
from model.recommender import Scored
from model.signals import Request, UserSignals, indexed, signals_of
from serving.client import HttpVariantClient
from serving.variants import Ranker

BATCH, BATCH_S, BEAM = 28, 0.035, 512
ITEMS, HISTORY = 100_000, 512
WAYS = {"one at a time": 0.0, "one made ready": 1.0}
"""GPUs of the replica."""


def catalogue() -> Catalogue:
    """Items without titles."""
    ids = tuple(f"item-{number}" for number in range(ITEMS))
    return Catalogue(ids, ids, ((),) * ITEMS)


class StandIn:
    """Does what a recommender does on the CPU, and then has the device for BATCH_S."""

    def __init__(self) -> None:
        self.catalogue = catalogue()
        self._device = threading.Lock()

    def indexed(self, history: Request[str]) -> UserSignals[int]:
        """As a recommender does."""
        return indexed(signals_of(history), self.catalogue)

    def best(self, known: Sequence[Request[int]], k: int) -> list[list[Scored]]:
        """k items for each."""
        padded(bucket_for(len(known), BEAM, HISTORY), known, HISTORY)
        with self._device:
            time.sleep(BATCH_S)
        return [[Scored(self.catalogue.ids[place], -float(place)) for place in range(k)] for _ in known]


def stand_in(_folder: str, _device: str) -> Ranker:
    """Instead of loading a checkpoint."""
    return StandIn()


def main() -> None:
    """Measure both ways at rising load; print, and write where asked."""
    told = options(__doc__)
    chance = random.Random(0)
    histories = [[f"item-{chance.randrange(ITEMS)}" for _ in range(HISTORY)] for _ in range(200)]
    numbers: dict[str, float] = {}
    with ray_serve() as url:

        def answered(users: int, seconds: float) -> tuple[float, float]:
            return closed_loop(HttpVariantClient(url, KEY, most=BATCH), histories, users, seconds)

        begin_table()
        for way, gpus in WAYS.items():
            serve_stand_in(stand_in, BATCH, gpus=gpus)
            answered(4, 2.0)
            for users in (1, 28, 56, 112):
                numbers |= shown(users, way, answered(users, told.seconds))
    keep(numbers, told.out)


if __name__ == "__main__":
    main()
