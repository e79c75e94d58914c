"""What a user's context costs, computed and kept: the 0.1B preset at 512 and 3072 items of history.

    python tests/bench/context_cache.py [--quick] [--out FILE]

Times are of computing (the machine may be shared), medians of interleaved rounds on one thread: `Recommender.context`,
from catalogue indices to keys and values, for one request and for eight of different users. Weights are random: the
time does not depend on them. A whole request with a beam of 32 stands beside it, to show what the context's share is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from provenance import this_setting

from model.catalogue import Catalogue
from model.config import PRESETS
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from model.signals import UserSignals

PRESET = "0.1B"
N_ITEMS = 20_000
LENGTHS = (512, 3072)
BATCHES = (1, 8)
BEAM_WIDTH = 32
KEPT_BYTES = 2**30

ARMS = {
    "encoded_anew": "computed, every item encoded anew (a catalogue too large for the item table)",
    "computed": "computed, items from the item table",
    "changed": "computed and kept: the user is known, the history is not",
    "kept": "from the cache",
}


def recommender_of(context_len: int, *, with_table: bool) -> Recommender:
    """The preset with that context, random weights and an item table, or none."""
    torch.manual_seed(0)
    number = torch.randperm(8192**2)[:N_ITEMS]
    codes = torch.stack([number // 8192, number % 8192, torch.zeros_like(number)], dim=1)
    ids = tuple(f"item-{index}" for index in range(N_ITEMS))
    catalogue = Catalogue(ids, ("",) * N_ITEMS, ((),) * N_ITEMS)
    model = OneRecV2(replace(PRESETS[PRESET], context_len=context_len))
    tokenizer = Tokenizer(codes, torch.zeros(3, 8192, 1))
    with mock.patch("model.recommender.ITEM_TABLE_BYTES", 2**40 if with_table else 0):
        return Recommender(model, catalogue, tokenizer, BEAM_WIDTH, cache_bytes=KEPT_BYTES)


class Visits:
    """Requests of the same users; each call of `changed` brings one more item of each."""

    def __init__(self, context_len: int, users: int) -> None:
        drawn = torch.randint(N_ITEMS, (users, context_len), generator=torch.Generator().manual_seed(1))
        self._histories: list[list[int]] = drawn.tolist()
        self._next = 0

    def nameless(self) -> list[UserSignals[int]]:
        """Nothing may be kept of them."""
        return [UserSignals(history) for history in self._histories]

    def named(self) -> list[UserSignals[int]]:
        """The same as before."""
        return [UserSignals(history, user_id=f"same {row}") for row, history in enumerate(self._histories)]

    def changed(self) -> list[UserSignals[int]]:
        """With a newest item that was not there before."""
        self._next += 1
        newest = self._next % N_ITEMS
        return [UserSignals([*h, newest], user_id=f"changing {row}") for row, h in enumerate(self._histories)]


def medians_ms(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median computing time of one call of each arm; the arms take turns, and the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for timed in range(rounds + 1):
        for name, arm in arms.items():
            began = time.process_time()
            arm()
            if timed:
                times[name].append((time.process_time() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def context_times(known: Recommender, anew: Recommender, visits: Visits, rounds: int) -> dict[str, float]:
    """Milliseconds of a batch's contexts in every arm; the two that must agree to the bit are compared first."""
    nameless, named = visits.nameless(), visits.named()
    for _ in range(2):
        if not all(
            torch.equal(*pair) for pair in zip(known.context(nameless).keys, known.context(named).keys, strict=True)
        ):
            raise SystemExit("a kept context differs from the computed one")
    arms: dict[str, Callable[[], object]] = {
        "encoded_anew": lambda: anew.context(nameless),
        "computed": lambda: known.context(nameless),
        "changed": lambda: known.context(visits.changed()),
        "kept": lambda: known.context(named),
    }
    return medians_ms(arms, rounds)


def request_ms(known: Recommender, requests: Sequence[UserSignals[int]], rounds: int) -> float:
    """A whole request, its context computed."""
    return medians_ms({"request": lambda: known.rank(requests, BEAM_WIDTH)}, rounds)["request"]


def main() -> None:
    """Measure, print, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, help="also write the numbers here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.quick else 11
    made, numbers = this_setting(), dict[str, float]()
    for length in LENGTHS:
        known, anew = (recommender_of(length, with_table=with_table) for with_table in (True, False))
        for batch in BATCHES:
            visits = Visits(length, batch)
            found = context_times(known, anew, visits, rounds)
            numbers |= {f"{arm}_{length}x{batch}_ms": value for arm, value in found.items()}
        numbers[f"request_{length}_ms"] = request_ms(known, Visits(length, 1).nameless(), 2 if options.quick else 5)
        config = known.config
        numbers[f"kept_bytes_{length}"] = config.context_tokens * config.context_width * 4
    columns = [(length, batch) for length in LENGTHS for batch in BATCHES]
    print(f"{made['hardware']}; {made['versions']}; preset {PRESET}, float32, {N_ITEMS:,} items\n")
    print("| context, ms | " + " | ".join(f"{length} items, {batch} request(s)" for length, batch in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for arm, title in ARMS.items():
        print(f"| {title} | " + " | ".join(f"{numbers[f'{arm}_{n}x{batch}_ms']:.2f}" for n, batch in columns) + " |")
    for length in LENGTHS:
        whole, kept = numbers[f"request_{length}_ms"], numbers[f"kept_bytes_{length}"]
        print(f"\n{length} items: a whole request takes {whole:.0f} ms; {kept / 2**20:.1f} MiB are kept of a user.")
    numbers = {name: round(value, 4) for name, value in numbers.items()}
    if options.out:
        options.out.write_text(json.dumps(made | {"numbers": numbers}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
