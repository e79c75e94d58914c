"""Run the tables in processes, write them as Markdown, and say which claims do not hold."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stats.simulation import canary, design, gating, growing, mismatch, peeking, ramp
from stats.simulation.jobs import Job, Table
from stats.simulation.rates import Rates, markdown, merged

TABLES: tuple[Table, ...] = (
    growing.TABLE,
    peeking.TABLE,
    gating.TABLE,
    design.TABLE,
    canary.TABLE,
    ramp.TABLE,
    mismatch.TABLE,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when every claim holds, 1 otherwise."""
    options = _options(arguments)
    chosen = [table for table in TABLES if not options.tables or table.key in options.tables.split(",")]
    if not chosen:
        print(f"no such table; there are {', '.join(table.key for table in TABLES)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    rates = simulate(chosen, quick=options.quick, workers=options.workers)
    text, complaints = _document(chosen, rates, quick=options.quick)
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    else:
        print(text)
    for complaint in complaints:
        print(f"NOT AS CLAIMED  {complaint}", file=sys.stderr)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(chosen)} tables in {minutes:.1f} minutes, {len(complaints)} claims broken", file=sys.stderr)
    return 1 if complaints else 0


def simulate(tables: Sequence[Table], *, quick: bool, workers: int) -> dict[str, Rates]:
    """The rates of each table by its key; the same for any number of workers."""
    parts: dict[str, dict[int, Rates]] = {table.key: {} for table in tables}
    work = [(table.key, index, job) for table in tables for index, job in enumerate(table.jobs(quick))]
    with _progress() as progress, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        bars = {table.key: progress.add_task(f"table {table.key}", total=len(table.jobs(quick))) for table in tables}
        futures = {executor.submit(_do, job): (key, index) for key, index, job in work}
        for future in as_completed(futures):
            key, index = futures[future]
            parts[key][index] = future.result()
            progress.advance(bars[key])
    return {key: merged(found[index] for index in sorted(found)) for key, found in parts.items()}


def _do(job: Job) -> Rates:
    return job.work(job.batch)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), transient=False)


def _document(tables: Sequence[Table], rates: dict[str, Rates], *, quick: bool) -> tuple[str, list[str]]:
    lines = ["# Simulations", ""]
    lines.append("Made by `make simulate`. Brackets are 95 % intervals (Wilson); seeds are fixed.")
    if quick:
        lines.append("\n**Quick version**: few runs, wide intervals; not for quoting.")
    complaints: list[str] = []
    for table in tables:
        shown = rates[table.key]
        body = (
            design.markdown_table(shown)
            if table.key == design.TABLE.key
            else markdown(shown, table.corner, stops=table.stops)
        )
        said = list(table.broken(shown))
        lines += ["", f"## {table.key}. {table.title}", "", table.note, "", body, ""]
        lines.append("Claims: hold." if not said else "Claims broken:\n" + "\n".join(f"- {line}" for line in said))
        complaints += [f"{table.key}: {line}" for line in said]
    return "\n".join(lines) + "\n", complaints


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stats.simulation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few runs: a minute or two instead of half an hour")
    parser.add_argument("--tables", default="", help="comma-separated keys, such as 3a,3d (default: all)")
    parser.add_argument("--out", default="", help="write the Markdown here instead of to the terminal")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    return parser.parse_args(arguments)
