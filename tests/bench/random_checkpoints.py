"""Two checkpoints of one random model for a service: BF16, and the same weights in FP8 by quant's quantiser.

    python tests/bench/random_checkpoints.py FOLDER [--preset moe-4b] [--items 100000] [--context 512] [--device cuda]

Weights are drawn and quantised on the device, so that the four-billion preset takes seconds. Random weights cost the
same time as trained ones; how good their slates are says nothing. Prints one JSON object: folders, seconds, device,
versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.catalogue import Catalogue
from model.checkpoint import write
from model.config import PRESETS, OneRecConfig
from model.onerec import OneRecV2
from model.semantic_ids import Tokenizer
from quant.convert import convert
from quant.crossover_timing import crossover_for
from quant.engine import MEASURED_ROWS
from quant.load import QUANT_METHOD
from quant.recipes import recipe_named
from quant.stored_weights import linear_shapes


def item_id(number: int) -> str:
    """The id of a synthetic item."""
    return f"i{number}"


def semantic_ids(items: int, levels: int, codebook_size: int, seed: int) -> Tensor:
    """[items, levels] distinct codes; the first level's clusters have sizes of a power law, as catalogues do."""
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, codebook_size + 1) ** 0.7
    found = np.empty((0, levels), dtype=np.int64)
    while found.shape[0] < items:
        first = rng.choice(codebook_size, size=(2 * items, 1), p=share / share.sum())
        rest = rng.integers(0, codebook_size, size=(2 * items, levels - 1))
        found = np.unique(np.concatenate([found, np.concatenate([first, rest], axis=1)]), axis=0)
    return torch.from_numpy(rng.permutation(found)[:items].copy())


def make_pair(folder: Path, config: OneRecConfig, items: int, device: torch.device, seed: int = 0) -> dict[str, Path]:
    """Write folder/bf16 and folder/fp8; returns both by name."""
    codes = semantic_ids(items, config.levels, config.codebook_size, seed)
    ids = tuple(item_id(number) for number in range(items))
    catalogue = Catalogue(ids, ids, ((),) * items)
    tokenizer = Tokenizer(codes, torch.zeros(config.levels, config.codebook_size, 1))
    torch.manual_seed(seed)
    with torch.device(device):
        model = OneRecV2(config).to(torch.bfloat16)
    folders = {"bf16": folder / "bf16", "fp8": folder / "fp8"}
    recipe = recipe_named("e4m3-engine")  # all that the engine can do in FP8
    with ThreadPoolExecutor(1) as pool:  # sums and writes of gigabytes: both at once
        plain = pool.submit(write, folders["bf16"], _on_host(model), config, catalogue, tokenizer)
        modules = convert(model, recipe)
        quantization = {"quant_method": QUANT_METHOD, "recipe": recipe.to_dict(), "modules": list(modules)}
        write(folders["fp8"], _on_host(model), config, catalogue, tokenizer, quantization=quantization)
        plain.result()
    if device.type == "cuda":  # while nobody else uses the device
        crossover_for(folders["fp8"], device, MEASURED_ROWS, linear_shapes(model))
    return folders


def _on_host(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="moe-4b")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    args = parser.parse_args()
    began = time.perf_counter()
    device = torch.device(args.device)
    config = replace(PRESETS[args.preset], context_len=args.context)
    with torch.no_grad():
        folders = make_pair(args.folder, config, args.items, device)
    about = {name: str(path) for name, path in folders.items()}
    about |= {"torch": torch.__version__, "cuda": torch.version.cuda or "", "python": platform.python_version()}
    about["gpu"] = torch.cuda.get_device_name() if args.device == "cuda" else "none"
    print(json.dumps(about | {"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
