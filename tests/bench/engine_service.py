"""What the service gets from the engine on one GPU: whole answers, from histories to items, and what the trie costs.

    python tests/bench/engine_service.py [--preset moe-4b] [--batch 28] [--width 512] [--context 3072]
        [--items 1000000] [--rounds N] [--quick] [--out FILE]

Weights, semantic ids and histories are random. Each arm is timed three ways: `decode` is the beam search alone,
without a trie, as tests/bench/decode.py has it; `graph` is the captured way from item indices to items; `answer` is
what a caller waits for. `fp8` multiplies everything in E4M3, `stored` as the service does: by the measured
crossover, which is printed. The last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from decode_plain import captured
from device_time import times_ms
from provenance import commit

from model.config import PRESETS, OneRecConfig
from model.context import ContextProcessor
from model.engine.arithmetic import Arithmetic, SixteenBit
from model.engine.context import History
from model.engine.decode import Decoder
from model.engine.prefixes import Prefixes
from model.engine.session import Session
from model.engine.weights import BlockWeights, DecoderWeights, random_weights
from model.trie import ItemTrie
from quant.crossover import Crossover
from quant.crossover_timing import crossover_for
from quant.kernels.eight_bit import EightBit
from quant.kernels.stored import Stored

DEVICE = torch.device("cuda")
MATRICES = ("cross_q", "cross_o", "self_qkv", "self_o", "up", "down")


class InFloat32(Sequence[BlockWeights]):
    """Blocks as a quantised checkpoint hands them over: what is E4M3 comes in float32, one block at a time."""

    def __init__(self, blocks: Sequence[BlockWeights]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: Any) -> Any:
        block = self._blocks[index]
        return replace(block, **{name: getattr(block, name).float() for name in MATRICES})

    def __iter__(self) -> Iterator[BlockWeights]:
        return (self[index] for index in range(len(self)))


def shapes_of(config: OneRecConfig) -> list[tuple[int, int]]:
    """(inner, outer) of the Linear layers."""
    d, shapes = config.d_model, {(config.d_model, config.d_model), (config.d_model, 3 * config.d_model)}
    if any(not config.is_moe_layer(layer) for layer in range(config.n_layers)):
        shapes |= {(d, 2 * config.ffn_dim), (config.ffn_dim, d)}
    return sorted(shapes)


def history_of(config: OneRecConfig, items: int) -> tuple[History, Prefixes]:
    """A context processor with random weights over a random catalogue."""
    torch.manual_seed(3)
    processor = ContextProcessor(config).to(DEVICE, torch.bfloat16).requires_grad_(False)
    codes = torch.randint(0, config.codebook_size, (2 * items, config.levels), device=DEVICE)
    codes = codes.unique(dim=0)
    codes = codes[torch.randperm(codes.shape[0], device=DEVICE)[:items]]
    table = torch.cat([processor.encode_items(part) for part in codes.split(65536)])
    trie = ItemTrie.build(codes, DEVICE)
    return History(processor, codes, table), Prefixes.of(trie, config.codebook_size)


def measure(decoder: Decoder[Any], history: History, prefixes: Prefixes, args: argparse.Namespace) -> dict[str, float]:
    """The three times of one arm, medians in ms, and whether its answers are legal."""
    config = decoder.config
    lengths = torch.full((args.batch,), config.context_len + 1, dtype=torch.int32, device=DEVICE)
    index = torch.randint(0, args.items, (args.batch, config.context_len), device=DEVICE, dtype=torch.int32)
    contexts = tuple(decoder.arithmetic.context(k, v, lengths) for k, v in history.keys_and_values(index, lengths))

    def bare() -> tuple[torch.Tensor, torch.Tensor]:
        out = decoder.decode(contexts, args.width)
        return out.codes, out.scores

    found = {"decode_ms": statistics.median(times_ms(captured(bare), args.rounds))}
    session = Session(decoder, history, prefixes)
    asked = torch.randint(0, args.items, (args.batch, config.context_len)).tolist()
    answer: Callable[[], Any] = lambda: session.search(asked, args.width)  # noqa: E731 - one expression
    items = answer().items
    legal = [min(row) >= 0 and not set(row) & set(seen) for row, seen in zip(items.tolist(), asked, strict=True)]
    found["legal_share"] = sum(legal) / len(legal)
    (graph,) = (entry.graph for entry in session._captured.values())
    found["graph_ms"] = statistics.median(times_ms(graph.replay, args.rounds))
    waits = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        answer()
        waits.append((time.perf_counter() - began) * 1e3)
    return found | {"answer_ms": statistics.median(waits), "slowest_answer_ms": max(waits)}


def arms(weights: DecoderWeights, crossover: Crossover, rows: tuple[int, ...]) -> Iterator[tuple[str, Decoder[Any]]]:
    """One decoder at a time, for two would not always fit."""
    plain: list[tuple[str, Arithmetic[Any]]] = [("bf16", SixteenBit()), ("fp8", EightBit())]
    for name, arithmetic in plain:
        yield name, Decoder(weights, arithmetic)
    yield "stored", Decoder(replace(weights, blocks=InFloat32(weights.blocks)), Stored(crossover, rows))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="moe-4b")
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--context", type=int, default=3072)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.rounds = min(args.rounds, 5) if args.quick else args.rounds
    config = replace(PRESETS[args.preset], context_len=args.context)
    rows = (args.batch, args.batch * args.width)
    crossover = crossover_for(None, DEVICE, (1, *rows), shapes_of(config))
    print("| rows | inner | outer | FP8 us | BF16 us |\n|---|---|---|---|---|")
    for t in crossover.timings:
        print(f"| {t.rows} | {t.inner} | {t.outer} | {t.fp8_us:.1f} | {t.bf16_us:.1f} |")
    history, prefixes = history_of(config, args.items)
    weights = random_weights(config, DEVICE, torch.Generator(DEVICE).manual_seed(1))
    result: dict[str, float] = {}
    print("\n| arm | decode ms | graph ms | answer ms | legal |\n|---|---|---|---|---|")
    for name, decoder in arms(weights, crossover, rows):
        got = measure(decoder, history, prefixes, args)
        print(f"| {name} | {got['decode_ms']:.2f} | {got['graph_ms']:.2f} | {got['answer_ms']:.2f} "
              f"| {got['legal_share']:.3f} |", flush=True)  # fmt: skip
        result |= {f"{name}_{key}": value for key, value in got.items()}
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit()}
    sizes = {key: getattr(args, key) for key in ("preset", "batch", "width", "context", "items")}
    print(about | sizes)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"hardware": about, "sizes": sizes, "result": result}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
