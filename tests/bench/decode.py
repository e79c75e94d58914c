"""Decode on one GPU: the engine in FP8 and in BF16 beside PyTorch's own best, each figure from one run.

    python tests/bench/decode.py [--quick] [--out FILE] [--profile] [--sweep] [--only SECTION ...]

Needs PyTorch with CUDA and Triton, nothing else, and no installation of this project; torchao for the arm of that
name. Every arm runs in a process of its own under a time limit; one that fails shows its error and the others go on.
torchao and eager PyTorch run for the first workload alone, at the end. Ratios compare arms of this run. The last line
is one JSON object of flat numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from provenance import commit

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = {"moe": ("moe-4b", 28), "1b": ("1B", 1), "8b": ("8B", 4)}
ARMS = ("compiled", "bf16", "fp8", "torchao", "eager")
OF_THE_HEADLINE = ("torchao", "eager")  # arms of the first workload alone, and the last to be run
FIGURES = ("queries_per_s", "latency_ms", "after_pause_ms")
"""Of an arm in the headline: under load, and the latency of a batch that finds a card at rest."""

LIMIT_S = {
    "compiled": 240,
    "torchao": 240,
    "eager": 90,
    "bf16": 120,
    "fp8": 120,
    "kernels": 240,
    "ceilings": 90,
    "tests": 300,
}


def child(arguments: list[str], limit_s: float) -> tuple[dict[str, float], str]:
    """Run a script of this folder; (the object of its last line, empty if it failed; its output or error)."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=environment,
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired as stopped:
        shown = stopped.stdout.decode() if isinstance(stopped.stdout, bytes) else stopped.stdout or ""
        return {}, f"{shown}\nstopped after {limit_s:.0f} s"
    if done.returncode:
        return {}, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\nexit status {done.returncode}"
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1]), "\n".join(lines[:-1])
    except (json.JSONDecodeError, IndexError):
        return {}, done.stdout


def hardware() -> dict[str, str]:
    """What the figures were measured on."""
    ask = (
        "import json, torch, triton; gpu = torch.cuda.get_device_properties(0);"
        "print(json.dumps({'gpu': gpu.name, 'multiprocessors': gpu.multi_processor_count,"
        "'torch': torch.__version__, 'triton': triton.__version__, 'cuda': torch.version.cuda}))"
    )
    found, problem = child(["-c", ask], 120)
    if not found:
        raise SystemExit(f"no usable GPU: {problem}")
    return {key: str(value) for key, value in found.items()} | {
        "python": platform.python_version(),
        "commit": commit(),
    }


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The headline figures, as far as the arms that they compare have run."""
    out: dict[str, float] = {}
    for arm in ARMS:
        if measured := found.get(f"moe {arm}"):
            out |= {f"{arm}_{name}": measured[name] for name in FIGURES if name in measured}
    if "fp8_latency_ms" in out and "bf16_latency_ms" in out:
        out["fp8_over_bf16_engine"] = out["bf16_latency_ms"] / out["fp8_latency_ms"]
    if "fp8_latency_ms" in out and "torchao_latency_ms" in out:
        out["fp8_over_torchao"] = out["torchao_latency_ms"] / out["fp8_latency_ms"]
    if "fp8_latency_ms" in out and "compiled_latency_ms" in out:
        out["fp8_over_compiled_bf16"] = out["compiled_latency_ms"] / out["fp8_latency_ms"]
        out["latency_cut_over_compiled_bf16"] = 1.0 - out["fp8_latency_ms"] / out["compiled_latency_ms"]
    for name in ("8b", "1b"):
        for peak, title in (("peak", "fp8"), ("sustained", "fp8 sustained")):
            if share := peak_share(found, name, title):
                out[f"fp8_{peak}_share_{name}"] = share
    return out


def peak_share(found: dict[str, dict[str, float]], name: str, product: str = "fp8") -> float | None:
    """Useful operations of a workload's whole FP8 decode a second, over the best dense FP8 product of the same run.

    product: "fp8", which is measured for 40 ms, or "fp8 sustained", for seconds as the decode is, so that the card has
    lowered its clock for both. The operations are those of `model.counting.decode_flops`. None unless both were
    measured.
    """
    measured = found.get(f"{name} fp8", {})
    peak = max(
        (rate for title in ("ceilings", "kernels") for rate in dense_rates(found.get(title, {}), product)), default=0.0
    )
    if "tflop" not in measured or not peak:
        return None
    return measured["tflop"] / (measured["latency_ms"] * 1e-3) / peak


def dense_rates(kernels: dict[str, float], name: str) -> list[float]:
    """TFLOP/s of the dense products among `decode_kernels.py`'s figures, which are microseconds by name."""
    rates = []
    for title, spent_us in kernels.items():
        if sizes := re.fullmatch(rf"{name} linear (\d+)x(\d+)x(\d+)", title):
            rates.append(2 * math.prod(map(int, sizes.groups())) / spent_us / 1e6)
    return rates


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the mixture of experts only, fewer rounds")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true", help="also list the longest kernels of each arm")
    parser.add_argument("--sweep", action="store_true", help="also time other tilings of the kernels")
    parser.add_argument("--only", nargs="+", choices=["tests", "kernels", *WORKLOADS], help="these sections")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="these arms")
    return parser.parse_args()


def main() -> None:
    args = options()
    sections = args.only or (["kernels", "moe"] if args.quick else ["kernels", *WORKLOADS])
    began = time.perf_counter()
    about = hardware()
    print(json.dumps(about), flush=True)
    found: dict[str, dict[str, float]] = {}
    failures: dict[str, str] = {}

    def keep() -> None:
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(
                json.dumps(
                    {"hardware": about, "headline": ratios(found), "sections": found, "failures": failures}, indent=1
                )
            )

    def section(title: str, arguments: list[str], limit_s: float) -> None:
        start = time.perf_counter()
        found_now, text = child(arguments, limit_s)
        print(f"\n## {title} ({time.perf_counter() - start:.0f} s)\n{text}", flush=True)
        if found_now:
            found[title] = found_now
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in found_now.items()}
            print(shown if title not in {"kernels", "ceilings"} else "", flush=True)
        else:
            failures[title] = text[-2000:]
        keep()

    with tempfile.TemporaryDirectory() as beams:

        def workload(name: str, arms: Iterable[str]) -> None:
            preset, batch = WORKLOADS[name]
            for arm in arms:
                arguments = ["tests/bench/decode_arms.py", "--arm", arm, "--preset", preset, "--batch", str(batch)]
                arguments += ["--rounds", "10" if args.quick else "30", "--beams", beams]
                section(f"{name} {arm}", arguments + (["--profile"] if args.profile else []), LIMIT_S[arm])

        for name in WORKLOADS:
            if name in sections:
                workload(name, [arm for arm in args.arms if arm not in OF_THE_HEADLINE])
        if {"1b", "8b"} & set(sections) and "kernels" not in sections:
            section("ceilings", ["tests/bench/decode_kernels.py", "--only", "ceilings"], LIMIT_S["ceilings"])
        if "moe" in sections:
            workload("moe", [arm for arm in args.arms if arm in OF_THE_HEADLINE])
    if "tests" in sections:
        pytest_options = ["-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "--import-mode=importlib"]
        files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*/test_*_gpu.py"))
        section("tests", ["-m", "pytest", "-q", "-p", "no:cacheprovider", *pytest_options, *files], LIMIT_S["tests"])
    if "kernels" in sections:
        sweep = ["--sweep"] if args.sweep else []
        section("kernels", ["tests/bench/decode_kernels.py", *sweep], LIMIT_S["kernels"])
    print("\n| arm | ms | queries/s | beams in common with compiled |\n|---|---|---|---|")
    for title, measured in found.items():
        if "latency_ms" in measured:
            common = measured.get("overlap_with_compiled")
            print(
                f"| {title} | {measured['latency_ms']:.2f} | {measured['queries_per_s']:.0f} "
                f"| {'' if common is None else f'{common:.3f}'} |"
            )
    for title in failures:
        print(f"| {title} | failed | | |")
    print(f"\n{time.perf_counter() - began:.0f} s in all")
    print(json.dumps(ratios(found)))


if __name__ == "__main__":
    main()
