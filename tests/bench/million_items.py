"""A million items on a CPU: semantic ids, the trie, and a beam of 128 over it, with their time and memory.

    python tests/bench/million_items.py [--items N] [--codes K] [--beam W] [--quick] [--out FILE.json]

The items are synthetic: points of a mixture whose groups have sizes of a power law, as catalogues do. The model has
random weights, which cost the same time as trained ones. One thread. The last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from provenance import this_setting
from rich.console import Console

from model.beam import beam_search
from model.config import PRESETS, OneRecConfig
from model.onerec import OneRecV2
from model.semantic_ids import TokenizerQuality, extend_tokenizer, fit_tokenizer
from model.trie import ItemTrie

LEVELS = 3
NEW_ITEMS_SHARE = 0.01
HISTORY = 50


class Clock:
    """Seconds, seconds of computing and peak memory of each named stage.

    On a machine that others use too, the seconds of computing are the ones to go by.
    """

    def __init__(self, console: Console) -> None:
        self.numbers: dict[str, float] = {}
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside; the peak is that of the process so far."""
        began, computed = time.perf_counter(), time.process_time()
        with self._console.status(name):
            yield
        seconds, computed, peak = time.perf_counter() - began, time.process_time() - computed, peak_gib()
        self.numbers |= {f"{name}_s": round(seconds, 2), f"{name}_cpu_s": round(computed, 2)}
        self.numbers |= {f"{name}_peak_gib": round(peak, 2)}
        self._console.print(f"{name:>14}: {seconds:8.1f} s ({computed:.1f} s of computing), peak {peak:.2f} GiB")


def peak_gib() -> float:
    """The most memory that this process has held (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synthetic_items(n: int, dim: int, seed: int) -> npt.NDArray[np.float32]:
    """[n, dim]: groups within groups, their sizes by a power law, and noise of each item's own."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((200, dim)).astype(np.float32)
    fine = 0.6 * rng.standard_normal((max(2, n // 50), dim)).astype(np.float32)
    share = 1.0 / np.arange(1, fine.shape[0] + 1) ** 0.7
    group = rng.choice(fine.shape[0], size=n, p=share / share.sum())
    parent = rng.integers(0, 200, size=fine.shape[0])
    out = rng.standard_normal((n, dim), dtype=np.float32)
    out *= 0.4
    out += coarse[parent[group]]
    out += fine[group]
    return out


def trie_mib(trie: ItemTrie) -> float:
    """Bytes of all its tensors."""
    tensors = [*trie.codes, *trie.first, *trie.items_under, trie.item_of_leaf, trie.node_of_item]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


@torch.inference_mode()
def request_ms(
    config: OneRecConfig, codes: torch.Tensor, trie: ItemTrie, width: int, batch: int, requests: int
) -> tuple[float, float]:
    """(median milliseconds of computing of a call with `batch` requests, share of its answers that are items)."""
    torch.manual_seed(0)
    model = OneRecV2(config).eval()
    draw = random.Random(0)
    times, legal = [], []
    for _ in range(requests + 1):
        seen = torch.tensor([draw.sample(range(trie.n_items), HISTORY) for _ in range(batch)])
        began = time.process_time()
        newest = seen[:, : config.context_len]
        context = model.context(codes[newest], torch.ones_like(newest, dtype=torch.bool))
        found = beam_search(model, context, trie, width, seen)
        times.append((time.process_time() - began) * 1e3)
        legal.append(float((found.items >= 0).double().mean()))
    return statistics.median(times[1:]), statistics.mean(legal)


def report(numbers: dict[str, float], quality: TokenizerQuality, setting: dict[str, str]) -> str:
    """Everything as Markdown."""
    stages = [name.removesuffix("_peak_gib") for name in numbers if name.endswith("_peak_gib")]
    lines = [
        f"# {numbers['items']:,.0f} items on a CPU",
        "",
        "| stage | s | s of computing | peak memory so far, GiB |",
        "|---|---|---|---|",
    ]
    for name in stages:
        times = f"{numbers[f'{name}_s']:.1f} | {numbers[f'{name}_cpu_s']:.1f}"
        lines.append(f"| {name} | {times} | {numbers[f'{name}_peak_gib']:.2f} |")
    lines += [
        "",
        f"The trie takes {numbers['trie_mib']:.0f} MiB. Ids of {LEVELS} levels × {numbers['codes']:.0f} codes:",
        "",
    ]
    lines += [
        quality.to_markdown(),
        "",
        f"| model, beam {numbers['beam']:.0f} | requests at once | ms of computing |",
        "|---|---|---|",
    ]
    for name, value in numbers.items():
        if name.startswith("request_"):
            preset, batch = name.removeprefix("request_").removesuffix("_ms").split("_batch")
            lines.append(f"| {preset}, random weights | {batch} | {value:.0f} |")
    lines += ["", f"{setting['hardware']}; {setting['versions']}; commit {setting['commit']}; `{setting['command']}`."]
    return "\n".join(lines)


def main() -> None:
    """Build, search, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--codes", type=int, default=8192, help="per level")
    parser.add_argument("--dim", type=int, default=64, help="width of an item's vector")
    parser.add_argument("--beam", type=int, default=128)
    parser.add_argument("--balanced", action="store_true", help="clusters of equal size")
    parser.add_argument("--points-per-code", type=int, default=16, help="items that the centroids are fitted on")
    parser.add_argument("--rounds", type=int, default=8, help="of k-means")
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--presets", nargs="+", default=["tiny", "0.1B"], choices=list(PRESETS))
    parser.add_argument("--quick", action="store_true", help="20,000 items, 256 codes, the tiny preset")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON and the report beside it")
    options = parser.parse_args()
    if options.quick:
        options.items, options.codes, options.presets, options.requests = 20_000, 256, ["tiny"], 3
    torch.set_num_threads(1)
    clock = Clock(Console(stderr=True))
    with clock.stage("items"):
        vectors = synthetic_items(options.items, options.dim, seed=0)
    with clock.stage("tokenizer"):
        tokenizer, quality = fit_tokenizer(
            vectors,
            LEVELS,
            options.codes,
            seed=0,
            balanced=options.balanced,
            points_per_code=options.points_per_code,
            max_rounds=options.rounds,
        )
    with clock.stage("new_items"):
        extend_tokenizer(tokenizer, vectors[: int(NEW_ITEMS_SHARE * options.items)] + np.float32(0.01))
    with clock.stage("trie"):
        trie = ItemTrie.build(tokenizer.codes)
    numbers = {"items": float(options.items), "codes": float(options.codes), "beam": float(options.beam)}
    numbers |= clock.numbers | {"trie_mib": round(trie_mib(trie), 1)}
    numbers |= {f"trie_fan_out_{level + 1}": float(fan) for level, fan in enumerate(trie.fan_out)}
    legal = []
    for preset in options.presets:
        config = replace(PRESETS[preset], codebook_size=options.codes, levels=LEVELS)
        for batch in (1, 8):
            found, share = request_ms(config, tokenizer.codes, trie, options.beam, batch, options.requests)
            numbers[f"request_{preset}_batch{batch}_ms"] = round(found, 1)
            legal.append(share)
    numbers |= {"legal_share": min(legal), "peak_gib": round(peak_gib(), 2)}
    numbers |= {"reconstruction": round(quality.reconstruction, 4), "collision_rate": round(quality.collision_rate, 5)}
    setting = this_setting()
    text = report(numbers, quality, setting)
    print(text)
    if options.out:
        options.out.write_text(json.dumps(setting | {"numbers": numbers}, indent=2) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
