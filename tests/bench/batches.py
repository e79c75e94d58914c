"""A batch made ready while the device computes another, against one batch at a time: one replica behind Ray Serve.

    python tests/bench/batches.py [--seconds 5] [--out FILE]

The device is a stand-in: a lock, held for as long for a batch as for one question. Everything else is the service's
own: its client, HAProxy, Ray Serve, the replica, a catalogue of 100,000 items and what makes 512 of them ready for a
graph. Closed loops; both ways in one run. A replica that is given a GPU has two batches under way, any other one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from coalescing import KEY, closed_loop
from provenance import this_setting

from model.catalogue import Catalogue
from model.engine.buckets import bucket_for, padded
from model.recommender import Scored
from model.signals import indexed, signals_of
from serving.client import HttpVariantClient
from serving.cluster import RAY_FLAGS
from serving.embedded import free_port
from serving.settings import Settings
from serving.variants import Ranker, variant_app

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

    def recommend(self, histories: Sequence[Sequence[str]], k: int) -> list[list[Scored]]:
        """k items for each."""
        known = [indexed(signals_of(history), self.catalogue) for history in histories]
        padded(bucket_for(len(histories), BEAM, HISTORY), known, HISTORY)
        with self._device:
            time.sleep(BATCH_S)
        return [[Scored(self.catalogue.ids[place], -float(place)) for place in range(k)] for _ in histories]


def stand_in(_folder: str, _device: str) -> Ranker:
    """Instead of loading a checkpoint."""
    return StandIn()


def answered(url: str, users: int, seconds: float) -> tuple[float, float]:
    """See `closed_loop`."""
    chance = random.Random(0)
    histories = [[f"item-{chance.randrange(ITEMS)}" for _ in range(HISTORY)] for _ in range(200)]
    return asyncio.run(closed_loop(HttpVariantClient(url, KEY, most=BATCH), histories, users, seconds))


def main() -> None:
    """Measure both ways at rising load; print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.update(RAY_FLAGS)
    here = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent)))
    os.environ["PYTHONPATH"] = here  # where the replica finds this file
    import ray
    from ray import serve

    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    numbers: dict[str, float] = {}
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        url = f"http://127.0.0.1:{port}"
        print("| users | way | answers/s | median, ms |\n|---|---|---|---|")
        for way, gpus in WAYS.items():
            settings = Settings(batch_size=BATCH, variant_threads=1, variant_gpus=gpus)
            application = variant_app("stand-in", Path(), KEY, settings, stand_in)
            serve.run(application, name="stand-in", route_prefix="/variants/stand-in")
            answered(url, 4, 2.0)
            for users in (1, 28, 56, 112):
                rate, median_ms = answered(url, users, options.seconds)
                name = way.replace(" ", "_")
                numbers |= {f"{name}_{users}_per_s": rate, f"{name}_{users}_median_ms": median_ms}
                print(f"| {users} | {way} | {rate:.0f} | {median_ms:.1f} |", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
    result = this_setting() | {"numbers": {name: round(value, 3) for name, value in numbers.items()}}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["numbers"]))


if __name__ == "__main__":
    main()
