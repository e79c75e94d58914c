"""Ablations of OneRec-V2 on MovieLens-100K: what each choice of the paper costs and brings, one at a time.

    python tests/bench/ablations.py [--tables NAME ...] [--epochs N] [--seed S] [--quick] [--fresh] [--out FILE.json]

Tables: Lkv (context key/value sets, with and without values of their own), G (key/value heads), codes (levels × codes),
beam (width, on one model), trie (share of illegal ids without it, on the same model), Pathways (of the context, see
`pathways.py`). Every model is trained anew on the same split and seed for a few epochs, so compare within a table, not
with fully trained models. A training that FILE holds already is not repeated. Writes FILE and Markdown beside it; the
last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ablation_results import CONTEXT, Results, Row, flat, markdown
from pathways import PATHWAYS, SEEDS, pathway_row
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from model.beam import beam_search
from model.catalogue import Catalogue
from model.config import PRESETS, OneRecConfig
from model.counting import count_parameters, forward_flops
from model.evaluate import accuracy, evaluate, ranker_of
from model.movielens import fetch_movielens, load_movielens
from model.recommender import Recommender
from model.split import Split, leave_one_out
from model.train import TrainOptions, train
from model.trie import ItemTrie

ROOT = Path(__file__).resolve().parents[2]
K = 10
WIDE = 64
BASE = replace(PRESETS["tiny"], n_layers=4)  # as many blocks as allow three values of Lkv
WIDTHS = (10, 16, 32, 64, 128, 256, 512)
Advance = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a table: its label and the configuration to train."""

    label: str
    config: OneRecConfig


TRAINED: dict[str, list[Variant]] = {
    "Lkv": [
        Variant(f"Lkv={sets}, S={split}", replace(BASE, kv_sets=sets, kv_split=split))
        for sets, split in ((1, 1), (2, 1), (4, 1), (1, 2), (4, 2))
    ],
    "G": [Variant(f"G={groups}", replace(BASE, kv_groups=groups)) for groups in (1, 2, 4)],
    "codes": [
        Variant(f"{levels} × {codes}", replace(BASE, levels=levels, codebook_size=codes))
        for levels, codes in ((2, 64), (2, 128), (3, 32), (3, 64), (3, 256), (4, 16))
    ],
}
"""The base is in each table, trained once."""
SEARCHED = ("beam", "trie")


def trained(variant: Variant, split: Split, options: TrainOptions, seed: int, advance: Advance) -> Recommender:
    """A recommender of that configuration."""
    done = train(split, variant.config, seed, options, lambda progress: advance(progress.step / progress.steps))
    return Recommender(done.model, Catalogue.of(split.interactions), done.tokenizer, WIDE)


@torch.inference_mode()
def held_out_nats(recommender: Recommender, split: Split) -> float:
    """Mean of -log p(test item), in nats; unlike a hit rate it is hardly noisy, and codes of any number compare."""
    users = split.evaluated_users()
    targets = recommender.codes[torch.from_numpy(split.test[users])]
    total = 0.0
    for rows in np.array_split(np.arange(users.shape[0]), 16):
        context = recommender.context([split.history(int(users[row]), with_validation=True).tolist() for row in rows])
        wanted = targets[torch.from_numpy(rows)]
        for level, logits in enumerate(recommender.model(context, wanted)):
            total += float(torch.nn.functional.cross_entropy(logits, wanted[:, level], reduction="sum"))
    return total / users.shape[0]


def measured(variant: Variant, split: Split, options: TrainOptions, seed: int, advance: Advance) -> Row:
    """Train and evaluate one row."""
    began = time.process_time()
    recommender = trained(variant, split, options, seed, advance)
    train_s = time.process_time() - began
    found = evaluate(ranker_of(recommender, WIDE), split, K)
    return {
        "nats": held_out_nats(recommender, split),
        "hr": found.hit_rate,
        "ndcg": found.ndcg,
        "parameters": float(count_parameters(variant.config).total),
        "mflop": forward_flops(variant.config, variant.config.context_len) / 1e6,
        "kv_values": float(variant.config.context_width),
        "train_s": train_s,
    }


@torch.inference_mode()
def beam_rows(recommender: Recommender, split: Split, requests: int) -> dict[str, Row]:
    """Quality by beam width, with a request's time alone."""
    rows = {}
    sample = [split.history(int(user), with_validation=True).tolist() for user in split.evaluated_users()[:requests]]
    for width in WIDTHS:
        found = evaluate(ranker_of(recommender, width), split, K)
        times = []
        for history in sample:
            began = time.process_time()  # the machine may be shared
            recommender.rank([history], width)
            times.append((time.process_time() - began) * 1e3)
        row = {"hr": found.hit_rate, "ndcg": found.ndcg, "coverage": found.coverage, "ms": statistics.median(times)}
        rows[f"W={width}"] = row
    return rows


@torch.inference_mode()
def trie_rows(recommender: Recommender, split: Split, widths: tuple[int, ...] = (10, 64, 512)) -> dict[str, Row]:
    """How many ids of a free beam are no items, and what the trie is worth, alone and with seen items masked in it."""
    free, item_of_id = trie_of_all_ids(recommender)
    itself = torch.arange(split.n_items)
    rows: dict[str, Row] = {}
    for width in widths:
        rows[f"no trie, W={width}"] = searched(recommender, split, free, item_of_id, width)
        rows[f"trie, seen items dropped afterwards, W={width}"] = searched(
            recommender, split, recommender.trie, itself, width
        )
        found = evaluate(ranker_of(recommender, width), split, K)
        legal = {"illegal_top10": 0.0, "illegal_beam": 0.0}
        rows[f"trie, seen items masked, W={width}"] = legal | {"hr": found.hit_rate, "ndcg": found.ndcg}
    return rows


def trie_of_all_ids(recommender: Recommender) -> tuple[ItemTrie, torch.Tensor]:
    """(a trie whose leaves are all codebook^levels ids, so that it forbids nothing; the item of each leaf, or -1)."""
    size, levels = recommender.config.codebook_size, recommender.config.levels
    every = torch.tensor(list(itertools.product(range(size), repeat=levels)))
    powers = size ** torch.arange(levels - 1, -1, -1)
    item_of_id = torch.full((size**levels,), -1, dtype=torch.int64)
    item_of_id[(recommender.codes * powers).sum(1)] = torch.arange(recommender.codes.shape[0])
    return ItemTrie.build(every), item_of_id


def searched(recommender: Recommender, split: Split, trie: ItemTrie, item_of_leaf: torch.Tensor, width: int) -> Row:
    """A beam over `trie`; illegal ids and seen items are then dropped from the answer and not replaced."""
    users = split.evaluated_users()
    histories = [split.history(int(user), with_validation=True).tolist() for user in users]
    ranked = np.full((len(histories), K), -1, dtype=np.int64)
    illegal_first, illegal_all = [], []
    for begin in range(0, len(histories), 32):
        batch = histories[begin : begin + 32]
        found = beam_search(recommender.model, recommender.context(batch), trie, width)
        items = item_of_leaf[found.items]
        illegal_first.append((items[:, :K] < 0).double().mean(1))
        illegal_all.append((items < 0).double().mean(1))
        for row, answer in enumerate(items.tolist()):
            seen = set(batch[row])
            left = [item for item in answer if item >= 0 and item not in seen][:K]
            ranked[begin + row, : len(left)] = left
    quality = accuracy(ranked, split.test[users], split.n_items)
    return {
        "illegal_top10": float(torch.cat(illegal_first).mean()),
        "illegal_beam": float(torch.cat(illegal_all).mean()),
        "hr": quality.hit_rate,
        "ndcg": quality.ndcg,
    }


def make_trained(
    name: str, variants: list[Variant], results: Results, train_one: Callable[[str, Variant], Row]
) -> None:
    """Fill one of the tables whose rows are trained models; the base is trained for the first table only."""
    for variant in variants:
        row = results.known(name, variant.label)
        for table, others in TRAINED.items():
            same = [other.label for other in others if other.config == variant.config]
            row = row or (results.known(table, same[0]) if same else None)
        results.keep(name, variant.label, row or train_one(name, variant))


def main() -> None:
    """Make the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*TRAINED, *SEARCHED, CONTEXT]
    parser.add_argument("--tables", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one epoch, few rows: checks that it runs")
    parser.add_argument("--fresh", action="store_true", help="make every row again")
    parser.add_argument("--data", type=Path, default=ROOT / ".crossfade" / "data", help="where the data is kept")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/bench/results/ablations.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    split = leave_one_out(load_movielens(fetch_movielens(options.data, console.print)))
    train_options = TrainOptions(epochs=1 if options.quick else options.epochs)
    note = (
        f"Base: the preset `tiny` with {BASE.n_layers} blocks. Each model was trained with seed {options.seed} and, to "
        f"save time, for {train_options.epochs} epoch(s) only. A hit rate's standard error over the 943 users is about "
        f"0.013: small differences are noise; the log-likelihood is steadier. The search tables use the base model."
    )
    results = Results(None if options.quick else options.out, note, options.fresh)
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console) as progress:

        def bar(label: str) -> Advance:
            task = progress.add_task(label, total=1.0)
            return lambda share: progress.update(task, completed=share)

        def train_one(name: str, variant: Variant) -> Row:
            return measured(variant, split, train_options, options.seed, bar(f"{name}: {variant.label}"))

        for name in [name for name in TRAINED if name in options.tables]:
            make_trained(name, TRAINED[name][: 2 if options.quick else None], results, train_one)
        if any(name in options.tables for name in SEARCHED):
            base = trained(Variant("base", BASE), split, train_options, options.seed, bar("base model"))
        if "beam" in options.tables:
            for label, row in beam_rows(base, split, 10 if options.quick else 100).items():
                results.keep("beam", label, row)
        if "trie" in options.tables:
            for label, row in trie_rows(base, split, (10,) if options.quick else (10, 64, 512)).items():
                results.keep("trie", label, row)
        if CONTEXT in options.tables:
            full = TrainOptions(epochs=1) if options.quick else TrainOptions()
            seeds = SEEDS[:1] if options.quick else SEEDS
            for label, config in list(PATHWAYS.items())[: 2 if options.quick else None]:
                row = results.known(CONTEXT, label)
                row = row or pathway_row(config, split, full, seeds, WIDE, bar(f"{CONTEXT}: {label}"))
                results.keep(CONTEXT, label, row)
    print(markdown(results.tables, results.made, note))
    print(json.dumps(flat(results.tables)))


if __name__ == "__main__":
    main()
