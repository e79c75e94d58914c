"""The README's tables of figures, made from the kept results: nobody copies a number by hand.

    python tests/bench/readme.py [--check]

Each table stands between `<!-- table NAME -->` and `<!-- end -->`. --check changes nothing and fails where one differs.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).resolve().parents[2] / "README.md"
_BLOCK = re.compile(r"(<!-- table (?P<name>[a-z0-9_-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def load(name: str) -> dict[str, Any]:
    """A kept result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, with a newline at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def decode(sections: dict[str, Any]) -> str:
    """Latency and throughput of every arm, the slowest first; and where it was timed the latency on a card at rest."""
    titles = {
        "eager": "PyTorch eager, BF16",
        "compiled": "PyTorch `torch.compile` + CUDA graphs, BF16",
        "bf16": "this engine, BF16",
        "torchao": "PyTorch `torch.compile` + CUDA graphs + torchao, FP8 without the routed experts",
        "fp8": "this engine, FP8",
    }
    workloads = {
        "moe": "MoE 4B/0.5B, 28 requests",
        "8b": "8B dense, 4 requests",
        "1b": "1B dense, 1 request",
    }
    figures = {
        "ms": ("latency_ms", ".1f"),
        "ms after a pause": ("after_pause_ms", ".1f"),
        "queries/s": ("queries_per_s", ".0f"),
    }
    arms = [
        (label, title, found)
        for workload, label in workloads.items()
        for arm, title in titles.items()
        if (found := sections.get(f"{workload} {arm}"))
    ]
    known = {name: figure for name, figure in figures.items() if all(figure[0] in found for _, _, found in arms)}
    rows = [[label, title, *(format(found[key], form) for key, form in known.values())] for label, title, found in arms]
    return table(["model", "arm", *known], rows)


def roofline(kept: dict[str, Any], arm: str) -> str:
    """Every call of one arm with its floor; what took less than half a millisecond together."""
    measured = [row for row in kept["rows"][arm] if row["floor_s"]]
    long = [row for row in measured if row["spent_s"] >= 0.5e-3]
    short = [row for row in kept["rows"][arm] if row not in long]

    def cells(label: str, bound: str, floor_s: float, spent_s: float) -> list[str]:
        share = f"{floor_s / spent_s:.0%}" if floor_s else "–"
        return [label, bound, f"{1e3 * floor_s:.2f}", f"{1e3 * spent_s:.2f}", share]

    rows = [cells(f"{row['name']}, {row['calls']} calls", row["bound"], row["floor_s"], row["spent_s"]) for row in long]
    for label, some in (("shorter ones and what is not counted", short), ("the sum", kept["rows"][arm])):
        rows.append(cells(label, "", *(sum(row[key] for row in some) for key in ("floor_s", "spent_s"))))
    whole = kept["numbers"][f"{arm}_graph_ms"]
    rows.append(["the decode as one CUDA graph", "", "", f"{whole:.2f}", ""])
    rows.append(["the same without pauses", "", "", f"{kept['numbers'][f'{arm}_sustained_ms']:.2f}", ""])
    return table(
        ["FP8" if arm == "fp8" else "BF16", "bound by", "floor, ms", "measured, ms", "share of the roof"], rows
    )


def report(numbers: dict[str, float]) -> str:
    """The four headline figures of the report benchmark."""
    peer = f"{numbers['times_faster_than_gbstats']:.0f} times as long"
    return table(
        ["10 metrics, 2 arms; 10 million impressions", "here", "the peer"],
        [
            ["a whole report", f"{numbers['report_ms']:.2f} ms", f"gbstats' sequential report: {peer}"],
            ["events folded, one core, batches of 10,000", f"{numbers['fold_events_per_s'] / 1e6:.1f} million/s", "–"],
            ["cold rebuild from Parquet", f"{numbers['rebuild_over_duckdb']:.2f} of DuckDB's time", "DuckDB: 1"],
        ],
    )


def serving(name: str) -> str:
    """Both arms behind the service on one GPU, or the command that would tell."""
    if not (RESULTS / f"{name}.json").is_file():
        return f"Not measured yet: `python tests/bench/gpu_serving.py --out tests/bench/results/{name}.json`\n"
    kept = load(name)
    found, plan = kept["numbers"], kept["plan"]
    arms = ("bf16", "fp8")

    def row(label: str, key: str, shown: str) -> list[str]:
        values = [found.get(key.format(arm)) for arm in arms]
        return [label, *("–" if value is None else shown.format(value) for value in values)]

    rows = [
        row("the most, alone, answers/s", "{}_queries_per_s", "{:.0f}"),
        row("cost of 1,000 answers, US dollars", "{}_cost_per_1000", "{:.5f}"),
    ]
    for label, prefix in (("alone", "{}"), ("both in the experiment", "{}_split")):
        rate = next((found[f"{prefix.format(arm)}_rate_per_s"] for arm in arms if f"{arm}_rate_per_s" in found), None)
        if rate is not None:
            rows += [row(f"{quantile}, {label}, at {rate:.0f}/s, ms", f"{prefix}_{quantile}_ms", "{:.0f}")
                     for quantile in ("p50", "p95", "p99")]  # fmt: skip
    rows += [
        row("errors", "{}_error_share", "{:.2%}"),
        row("answered by the other arm", "{}_fallback_share", "{:.2%}"),
    ]
    about = (
        f"{plan['preset']} with random weights, {plan['context']:,} items of history, beam {plan['beam']}, "
        f"{plan['items']:,} items; {found.get('gpu', 'no GPU')} at {found['price_per_gpu_hour']:.2f} "
        f"US dollars an hour; "
        f"the gate's verdict: {found.get('verdict', 'none')} ([result](tests/bench/results/{name}.json))."
    )
    return f"{about}\n\n{table(['', 'BF16', 'FP8'], rows)}"


def two_ways(numbers: dict[str, float], *ways: str) -> str:
    """Ways of answering, at rising load."""
    keys = [way.replace(" ", "_") for way in ways]
    loads = sorted(int(found[1]) for name in numbers if (found := re.fullmatch(rf"{keys[0]}_(\d+)_per_s", name)))

    def cells(users: int) -> list[str]:
        shown = [str(users)]
        for way in keys:
            shown += [f"{numbers[f'{way}_{users}_per_s']:,.0f}", f"{numbers[f'{way}_{users}_median_ms']:.0f}"]
        return shown

    head = ["users at a time"]
    for way in ways:
        head += [f"{way}, answers/s", "median, ms"]
    return table(head, [cells(users) for users in loads])


def parity(numbers: dict[str, float]) -> str:
    """Accuracy of every variant, and its agreement with BF16."""
    names = {
        "bf16": ("BF16", None),
        "bf16_in_other_kernels": ("BF16 in other kernels (control)", "bf16_in_other_kernels_against_bf16_control"),
        "fp8_e4m3": ("FP8 (`e4m3`)", "fp8_e4m3_against_bf16"),
        "fp8_e4m3_engine": ("FP8 as on the GPU engine (`e4m3-engine`)", "fp8_e4m3_engine_against_bf16"),
    }
    rows = []
    for name, (title, pair) in names.items():
        agreed = (
            ["–"] * 3
            if pair is None
            else [f"{numbers[f'{pair}_{of}']:.1%}" for of in ("overlap", "beam_overlap", "top1_changed")]
        )
        found = f"{numbers[f'{name}_hit_rate']:.4f} ± {numbers[f'{name}_hit_rate_std']:.4f}"
        rows.append([title, found, *agreed])
    return table(["5 seeds of `tiny`", "HR@10", "top-10 overlap", "beam-32 overlap", "top-1 changed"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "decode-h200": lambda: decode(load("decode-h200")["sections"]),
    "decode-1b-h200": lambda: decode(load("decode-1b-h200")["sections"]),
    "decode-71e1c51-h200": lambda: decode(load("decode-71e1c51-h200")["sections"]),
    "roofline-h200": lambda: roofline(load("roofline-h200"), "fp8"),
    "gpu_serving-h200": lambda: serving("gpu_serving-h200"),
    "parity": lambda: parity(load("parity-amd-epyc")["numbers"]),
    "coalescing": lambda: two_ways(load("coalescing-amd-epyc")["numbers"], "one call each", "together"),
    "batches": lambda: two_ways(load("batches-amd-epyc")["numbers"], "one at a time", "one made ready"),
    "report": lambda: report(load("report")["numbers"]),
}


def filled(text: str) -> str:
    """The README with every table made anew. Raises KeyError for a table that nobody makes."""
    return _BLOCK.sub(lambda found: found[1] + TABLES[found["name"]]() + found[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail where a table differs")
    check = parser.parse_args().check
    before = README.read_text()
    after = filled(before)
    if before == after:
        return 0
    if check:
        print("README.md differs from tests/bench/results: run python tests/bench/readme.py", file=sys.stderr)
        return 1
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
