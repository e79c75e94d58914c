"""Does FP8 recommend what BF16 does? Beside what BF16 in other kernels already changes.

    python tests/bench/parity.py [--quick] [--device cpu] [--only trained random scaling] [--seeds 0 1 2 3 4]
                                 [--presets NAME ...] [--checkpoints DIR] [--data DIR] [--out FILE.json]

trained: OneRec-V2 `tiny` on MovieLens-100K, one model per seed, all 943 users; trained here unless DIR/tiny-SEED holds
one already. random: presets with random weights and random histories, where nothing but the arithmetic speaks. scaling:
one scale per row against one per 128 × 128 tile of the experts, on random weights and on a trained model with experts
when DIR/moe-0 holds one. Writes FILE and a Markdown report beside it; the last line is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from parity_random import random_parity, scaling
from provenance import this_setting

from model.config import PRESETS
from model.movielens import fetch_movielens, load_movielens
from model.split import Split, leave_one_out
from quant.load import quantize_checkpoint
from quant.parity import KERNEL_CONTROL, Agreement, ParityReport, parity
from quant.recipes import RECIPES
from quant.table import Table, table

ROOT = Path(__file__).resolve().parents[2]
TRAINED_RECIPES = ("e4m3", "e4m3-engine")
FP8 = "fp8 against bf16"
MARGIN_POINTS = 10.0
"""How far FP8's overlap may lie below the control's."""


def settings(device: torch.device) -> dict[str, str]:
    """Provenance; on a GPU that GPU's name stands for the hardware."""
    made = this_setting()
    if device.type == "cuda":
        made["hardware"] = torch.cuda.get_device_name(device)
        made["versions"] = f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return made


def checkpoint(folder: Path, seed: int, split: Split, quick: bool) -> Path:
    """The trained model of that seed, kept in `folder`."""
    found = folder / f"tiny-{seed}"
    if not (found / "SHA256SUMS").is_file():
        from model.catalogue import Catalogue
        from model.checkpoint import save
        from model.train import TrainOptions, train

        print(f"training tiny with seed {seed}", flush=True)
        config = PRESETS["tiny"]
        done = train(split, config, seed, TrainOptions(epochs=1) if quick else TrainOptions())
        catalogue = Catalogue.of(split.interactions)
        save(found, done.model, config, catalogue, done.tokenizer, extra={"seed": seed}, dtype=torch.bfloat16)
    return found


def trained(
    folder: Path, split: Split, seeds: list[int], device: torch.device, quick: bool
) -> dict[str, list[ParityReport]]:
    """A thorough report of each seed, by recipe; and each layer's own SQNR is in the checkpoint's report."""
    out: dict[str, list[ParityReport]] = {name: [] for name in TRAINED_RECIPES}
    with tempfile.TemporaryDirectory() as home:
        for seed in seeds:
            plain = checkpoint(folder, seed, split, quick)
            for name, reports in out.items():
                quantize_checkpoint(plain, Path(home) / name, RECIPES[name])
                reports.append(parity(plain, Path(home) / name, split, device=device, thorough=True))
                print(f"tiny, seed {seed}, {name}: done", flush=True)
    return out


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, which is 0 of a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def trained_tables(found: Mapping[str, list[ParityReport]]) -> tuple[list[Table], dict[str, float]]:
    """Accuracy and agreement over the seeds, and the two claims as numbers."""
    accuracy_rows, pair_rows, numbers = [], [], {}
    for recipe, reports in found.items():
        names = list(reports[0].accuracies)
        for name in names if recipe == TRAINED_RECIPES[0] else ["fp8"]:
            label = f"fp8 ({recipe})" if name == "fp8" else name
            cells = []
            for metric in ("hit_rate", "ndcg"):
                mean, deviation = spread([getattr(report.accuracies[name], metric) for report in reports])
                numbers[f"{key(label)}_{metric}"] = mean
                numbers[f"{key(label)}_{metric}_std"] = deviation
                cells.append(f"{mean:.4f} ± {deviation:.4f}")
            accuracy_rows.append([label, *cells])
        pairs = [FP8, KERNEL_CONTROL] if recipe == TRAINED_RECIPES[0] else [FP8]
        for name in pairs:
            label = name.replace("fp8", f"fp8 ({recipe})")
            pair_rows.append([label, *pair_cells(reports, name, key(label), numbers)])
        bf16, fp8 = (spread([report.accuracies[name].hit_rate for report in reports]) for name in ("bf16", "fp8"))
        control = numbers[f"{key(KERNEL_CONTROL)}_overlap"]
        numbers[f"{key(recipe)}_hit_rate_gap"] = fp8[0] - bf16[0]
        numbers[f"{key(recipe)}_hit_rate_within_seeds_std"] = float(abs(fp8[0] - bf16[0]) <= bf16[1])
        below = 100 * (control - numbers[f"{key(f'fp8 ({recipe}) against bf16')}_overlap"])
        numbers[f"{key(recipe)}_overlap_points_below_control"] = below
        numbers[f"{key(recipe)}_overlap_within_margin"] = float(below <= MARGIN_POINTS)
    reports = found[TRAINED_RECIPES[0]]
    shown = len(reports)
    columns = ("pair", "top-10 overlap", "beam-32 overlap", "top-1 changed", "logit error", "lowest layer, dB")
    return [
        table(f"tiny on MovieLens-100K, {shown} seeds: accuracy", ("variant", "HR@10", "NDCG@10"), accuracy_rows),
        table(f"tiny on MovieLens-100K, {shown} seeds: agreement", columns, pair_rows),
        layer_table(reports),
    ], numbers


def layer_table(reports: list[ParityReport]) -> Table:
    """Mean SQNR over the seeds of what each part of each block puts out, errors of earlier parts included."""
    near = [{each.name: each.layers for each in report.fidelities} for report in reports]
    rows = [
        [layer, *(f"{statistics.mean(of[name][layer] for of in near):.1f}" for name in (FP8, KERNEL_CONTROL))]
        for layer in near[0][FP8]
    ]
    return table("tiny: output of every part, SQNR in dB against BF16", ("part", FP8, KERNEL_CONTROL), rows)


def key(label: str) -> str:
    """A label as a name among flat numbers."""
    return "_".join(re.findall(r"[a-z0-9]+", label.lower()))


def pair_cells(reports: list[ParityReport], name: str, label: str, numbers: dict[str, float]) -> list[str]:
    """One row of the agreement table; the same into `numbers`."""
    of: dict[str, list[float]] = {"overlap": [], "beam_overlap": [], "top1_changed": [], "logit_error": [], "db": []}
    for report in reports:
        top, beam = named(report.agreements, name), named(report.beams, name)
        near = next(each for each in report.fidelities if each.name == name)
        of["overlap"].append(top.overlap)
        of["beam_overlap"].append(beam.overlap)
        of["top1_changed"].append(top.top1_changed)
        of["logit_error"].append(near.logit_error)
        of["db"].append(min(near.layers.values()))
    cells = []
    for figure, values in of.items():
        mean, deviation = spread(values)
        numbers[f"{label}_{figure}"] = mean
        shown = (f"{mean:.1f}", f"{deviation:.1f}") if figure == "db" else (f"{mean:.1%}", f"{deviation:.1%}")
        cells.append(" ± ".join(shown))
    return cells


def named(found: tuple[Agreement, ...], name: str) -> Agreement:
    """The pair of that name."""
    return next(each for each in found if each.name == name)


def markdown(setting: Mapping[str, str], tables: list[Table]) -> str:
    """The report to keep."""
    lines = ["# FP8 beside BF16, and BF16 beside itself in other kernels", ""]
    lines += [
        "Agreement is with BF16 in the same program. The control computes BF16 once more by other, mathematically",
        "equal kernels (`quant/control.py`). SQNR of a layer includes the errors of those before it; a logit error is",
        "relative to the logits' standard deviation. Trained: mean ± standard deviation over the seeds.",
        "",
    ]
    for each in tables:
        lines += [f"## {each.title}", "", each.markdown(), ""]
    lines.append(f"{setting['hardware']}; {setting['versions']}; commit {setting['commit']}; `{setting['command']}`.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what was asked for; print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few requests: checks that it runs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", default=["trained", "random", "scaling"], metavar="PART")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--presets", nargs="+", help="0.1B and moe-small unless given")
    parser.add_argument("--requests", type=int, help="16 on a CPU, 64 on a GPU, unless given")
    parser.add_argument("--width", type=int, help="beams: 32 on a CPU, 512 on a GPU, unless given")
    parser.add_argument(
        "--checkpoints", type=Path, default=ROOT / ".crossfade" / "parity", help="where models are kept"
    )
    parser.add_argument("--data", type=Path, default=ROOT / ".crossfade" / "data", help="where the data is kept")
    parser.add_argument("--out", type=Path, help="also write the numbers here, and a report beside them")
    options = parser.parse_args()
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    if not gpu:
        torch.set_num_threads(1)
    setting = settings(device)
    print(f"{setting['hardware']}; {setting['versions']}\n")
    tables: list[Table] = []
    numbers: dict[str, float] = {}
    if "trained" in options.only:
        split = leave_one_out(load_movielens(fetch_movielens(options.data)))
        seeds = options.seeds[:1] if options.quick else options.seeds
        shown, found = trained_tables(trained(options.checkpoints, split, seeds, device, options.quick))
        tables, numbers = tables + shown, numbers | found
    if "random" in options.only:
        presets = options.presets or (["moe-small"] if options.quick else ["0.1B", "moe-small"])
        requests = options.requests or (2 if options.quick else 64 if gpu else 16)
        rows: list[list[str]] = []
        for preset in presets:
            more, found = random_parity(preset, device, requests, options.width or (512 if gpu else 32))
            rows, numbers = rows + more, numbers | found
        columns = ("preset", "requests × beams", "against bf16", "top-10 overlap", "beam overlap", "top-1 changed")
        tables.append(table("Random weights", (*columns, "logit error", "lowest layer, dB"), rows))
    if "scaling" in options.only:
        with_experts = options.checkpoints / "moe-0"
        shown_one, found = scaling(with_experts if (with_experts / "SHA256SUMS").is_file() else None, device)
        tables, numbers = [*tables, shown_one], numbers | found
    numbers = {key(name): round(value, 5) for name, value in numbers.items()}
    for each in tables:
        print(f"\n{each.title}\n\n{each.markdown()}")
    if options.out:
        options.out.write_text(json.dumps(setting | {"numbers": numbers}, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(markdown(setting, tables), encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
