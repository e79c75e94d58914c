"""Questions that travel together against one call each: throughput and latency of one variant behind Ray Serve.

    python tests/bench/coalescing.py [--seconds 5] [--out FILE]

The model is a stand-in that takes as long for a batch as for one question, as a GPU nearly does; everything else is the
service's own: its client, HAProxy, Ray Serve and the replica. Closed loops; both ways in one run, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provenance import this_setting

from serving.client import CALLS, HttpVariantClient
from serving.cluster import RAY_FLAGS
from serving.embedded import free_port
from serving.question import Question
from serving.settings import Settings
from serving.variants import Ranker, variant_app

BATCH, BATCH_S = 28, 0.02
HISTORY = [f"i{number}" for number in range(200)]
WAYS = {"together": {"calls": CALLS, "most": BATCH}, "one call each": {"calls": 256, "most": 1}}
KEY = "key"


@dataclass(frozen=True, slots=True)
class Scored:
    """An item and its score."""

    item_id: str
    score: float


class StandIn:
    """Answers any batch after BATCH_S."""

    catalogue = dict.fromkeys(HISTORY)

    def recommend(self, histories: Sequence[Sequence[str]], k: int) -> list[list[Scored]]:
        """k items for each."""
        time.sleep(BATCH_S)
        return [[Scored(HISTORY[place], -float(place)) for place in range(k)] for _ in histories]


def stand_in(_folder: str, _device: str) -> Ranker:
    """Instead of loading a checkpoint."""
    return StandIn()


async def closed_loop(
    client: HttpVariantClient, histories: Sequence[Sequence[str]], users: int, seconds: float
) -> tuple[float, float]:
    """(answers a second, median latency in ms) of so many users who ask again when they are answered."""
    chance = random.Random(0)
    spent_s: list[float] = []
    until = time.perf_counter() + seconds

    async def user() -> None:
        while (began := time.perf_counter()) < until:
            await client.recommend("stand-in", Question(chance.choice(histories), 10), 30.0)
            spent_s.append(time.perf_counter() - began)

    await asyncio.gather(*(user() for _ in range(users)))
    await client.close()
    return len(spent_s) / seconds, 1e3 * statistics.median(spent_s)


def main() -> None:
    """Measure both ways at rising load; print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ.update(RAY_FLAGS)
    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    numbers: dict[str, float] = {}
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(batch_size=BATCH, variant_threads=1)
        application = variant_app("stand-in", Path(), KEY, settings, stand_in)
        serve.run(application, name="stand-in", route_prefix="/variants/stand-in")
        url = f"http://127.0.0.1:{port}"

        def answered(way: str, users: int, seconds: float) -> tuple[float, float]:
            return asyncio.run(closed_loop(HttpVariantClient(url, KEY, **WAYS[way]), [HISTORY], users, seconds))

        answered("one call each", 4, 2.0)
        print("| users | way | answers/s | median, ms |\n|---|---|---|---|")
        for users in (1, 4, 28, 112):
            for way in WAYS:
                rate, median_ms = answered(way, users, options.seconds)
                name = way.replace(" ", "_")
                numbers |= {f"{name}_{users}_per_s": rate, f"{name}_{users}_median_ms": median_ms}
                print(f"| {users} | {way} | {rate:.0f} | {median_ms:.1f} |", flush=True)
            together, apart = (numbers[f"{way.replace(' ', '_')}_{users}_per_s"] for way in WAYS)
            numbers[f"times_as_many_{users}"] = together / apart
    finally:
        serve.shutdown()
        ray.shutdown()
    result = this_setting() | {"numbers": {name: round(value, 3) for name, value in numbers.items()}}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["numbers"]))


if __name__ == "__main__":
    main()
