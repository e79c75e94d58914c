"""One variant behind Ray Serve with a stand-in for its model, and closed loops of users who ask it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from provenance import this_setting

from serving.client import HttpVariantClient
from serving.cluster import RAY_FLAGS
from serving.embedded import free_port
from serving.question import Question
from serving.settings import Settings
from serving.variants import Loader, variant_app

KEY = "key"


def options(description: str | None) -> argparse.Namespace:
    """What these benchmarks are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@contextlib.contextmanager
def ray_serve() -> Iterator[str]:
    """Ray Serve's address while it runs, on two cores and a GPU that nobody looks at."""
    os.environ.update(RAY_FLAGS)
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join((str(here.parents[1]), str(here)))  # where replicas find stand-ins
    import ray
    from ray import serve

    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def serve_stand_in(load: Loader, batch: int, *, gpus: float = 0.0) -> None:
    """Put it in the place of whatever was served."""
    from ray import serve

    settings = Settings(batch_size=batch, variant_threads=1, variant_gpus=gpus)
    serve.run(variant_app("stand-in", Path(), KEY, settings, load), name="stand-in", route_prefix="/variants/stand-in")


def closed_loop(
    client: HttpVariantClient, histories: Sequence[Sequence[str]], users: int, seconds: float
) -> tuple[float, float]:
    """(answers a second, median latency in ms) of so many users who ask again when they are answered."""
    return asyncio.run(_closed_loop(client, histories, users, seconds))


async def _closed_loop(
    client: HttpVariantClient, histories: Sequence[Sequence[str]], users: int, seconds: float
) -> tuple[float, float]:
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


def begin_table() -> None:
    """Its head."""
    print("| users | way | answers/s | median, ms |\n|---|---|---|---|")


def shown(users: int, way: str, found: tuple[float, float]) -> dict[str, float]:
    """A row of the table, and the same by name."""
    print(f"| {users} | {way} | {found[0]:.0f} | {found[1]:.1f} |", flush=True)
    name = way.replace(" ", "_")
    return {f"{name}_{users}_per_s": found[0], f"{name}_{users}_median_ms": found[1]}


def keep(numbers: Mapping[str, float], out: Path | None) -> None:
    """Write them with where they were measured, and print them as the last line."""
    result = this_setting() | {"numbers": {name: round(value, 3) for name, value in numbers.items()}}
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["numbers"]))
