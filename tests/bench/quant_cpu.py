"""FP8 on a CPU: what the quantised arm costs beside the plain one, and why the reference is not `_scaled_mm`.

    python tests/bench/quant_cpu.py [--quick] [--out FILE] [--checkpoint DIR]

Times are medians of interleaved rounds on one thread. Without --checkpoint the tiny preset with random weights and
1,682 items answers: the time does not depend on the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from provenance import this_setting
from torch import Tensor
from torch.nn import functional

from model.catalogue import Catalogue
from model.checkpoint import save
from model.config import PRESETS
from model.onerec import OneRecV2
from model.recommender import Recommender
from model.semantic_ids import Tokenizer
from quant.load import load_recommender, quantize_checkpoint
from quant.ops import _scaled_product, fp8_linear
from quant.primitives import dequantise, quantise, row_scale
from quant.recipes import DEFAULT_RECIPE, RECIPES

N_ITEMS = 1682
BATCH, K, HISTORY = 8, 10, 50
SHAPES = ((8, 64, 64), (256, 64, 64), (256, 64, 512), (256, 256, 64), (512, 256, 1024))


def medians_ms(arms: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, float]:
    """Median time of one call of each arm; the arms take turns, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for warm_and_timed in range(rounds + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            for _ in range(calls):
                arm()
            if warm_and_timed:
                times[name].append((time.perf_counter() - began) / calls * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def through_eight_bits(x: Tensor, matrix: Tensor) -> Tensor:
    """The alternative to the reference: activations into the 8-bit type and back."""
    scale = row_scale(x)
    return functional.linear(dequantise(quantise(x, scale), scale), matrix)


@torch.inference_mode()
def operators(rounds: int) -> list[dict[str, float]]:
    """One product of each shape: plain, by the reference, through the 8-bit type, by torch._scaled_mm."""
    rows = []
    for tokens, wide, out in SHAPES:
        x, dense = torch.randn(tokens, wide), torch.randn(out, wide)
        scale = row_scale(dense)
        codes, matrix = quantise(dense, scale), dequantise(quantise(dense, scale), scale)
        arms: dict[str, Callable[[], object]] = {
            "plain": lambda x=x, dense=dense: functional.linear(x, dense),
            "reference": lambda x=x, c=codes, s=scale, m=matrix: fp8_linear(x, c, s, dequantised=m),
            "eight_bits": lambda x=x, m=matrix: through_eight_bits(x, m),
            "scaled_mm": lambda x=x, c=codes, s=scale: _scaled_product(x, c, s, None),
        }
        rows.append({"tokens": tokens, "in": wide, "out": out, **medians_ms(arms, rounds, 20)})
    return rows


def random_checkpoint(folder: Path) -> Path:
    """The tiny preset with random weights, stored in bfloat16."""
    torch.manual_seed(0)
    number = torch.randperm(64**3)[:N_ITEMS]
    codes = torch.stack([number // 4096, number // 64 % 64, number % 64], dim=1)
    ids = tuple(f"item-{index}" for index in range(N_ITEMS))
    catalogue = Catalogue(ids, ("",) * N_ITEMS, ((),) * N_ITEMS)
    tokenizer = Tokenizer(codes, torch.zeros(3, 64, 8))
    save(folder, OneRecV2(PRESETS["tiny"]), PRESETS["tiny"], catalogue, tokenizer, dtype=torch.bfloat16)
    return folder


def recommenders(plain_dir: Path, fp8_dir: Path, rounds: int) -> dict[str, float]:
    """Recommender.recommend of both arms as they are served."""
    quantize_checkpoint(plain_dir, fp8_dir, RECIPES[DEFAULT_RECIPE])
    arms: dict[str, Recommender] = {"bf16": load_recommender(plain_dir), "fp8": load_recommender(fp8_dir)}
    ids = arms["bf16"].catalogue.ids
    drawn = torch.randint(len(ids), (BATCH, HISTORY)).tolist()
    histories = [[ids[item] for item in row] for row in drawn]
    calls = {name: lambda arm=arm: arm.recommend(histories, K) for name, arm in arms.items()}
    return medians_ms(calls, rounds, 4)


def main() -> None:
    """Measure, print, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--out", type=Path, help="also write the numbers here as JSON")
    parser.add_argument("--checkpoint", type=Path, help="a plain checkpoint instead of random weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 5 if options.quick else 40
    made = this_setting()
    print(f"{made['hardware']}; {made['versions']}\n")
    with tempfile.TemporaryDirectory() as home:
        plain = options.checkpoint or random_checkpoint(Path(home) / "bf16")
        answer = recommenders(plain, Path(home) / "fp8", rounds)
    numbers = {"bf16_recommend_ms": answer["bf16"], "fp8_recommend_ms": answer["fp8"]}
    numbers["fp8_over_bf16_time"] = answer["fp8"] / answer["bf16"]
    print(f"| recommend, batch {BATCH}, k={K} | ms | over BF16 |\n| --- | --- | --- |")
    for name, value in answer.items():
        print(f"| {name} | {value:.2f} | {value / answer['bf16']:.2f} |")
    print("\n| tokens × in → out | float32 ms | reference ms | through 8 bits ms | _scaled_mm ms |")
    print("| --- | --- | --- | --- | --- |")
    for row in operators(rounds):
        label = f"{row['tokens']:.0f}x{row['in']:.0f}x{row['out']:.0f}"
        times = [row[name] for name in ("plain", "reference", "eight_bits", "scaled_mm")]
        print(f"| {label} | " + " | ".join(f"{value:.3f}" for value in times) + " |")
        numbers |= {f"{name}_{label}_ms": row[name] for name in ("plain", "reference", "eight_bits", "scaled_mm")}
    numbers = {name: round(value, 4) for name, value in numbers.items()}
    if options.out:
        options.out.write_text(json.dumps(made | {"numbers": numbers}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
