"""Run the tables in processes, write them as Markdown, and say which claims do not hold."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from stats.simulation import canary, design, gating, growing, mismatch, peeking, ramp
from stats.simulation.expected import markdown, outside
from stats.simulation.jobs import Job, Table
from stats.simulation.rates import Rates, merged

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
    """Returns 0 when every claim holds, 1 otherwise, 2 on bad arguments."""
    options = _options(arguments)
    chosen = [table for table in TABLES if not options.tables or table.key in options.tables.split(",")]
    if not chosen:
        print(f"no such table; there are {', '.join(table.key for table in TABLES)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    rates = simulate(chosen, quick=options.quick, workers=options.jobs, seed=options.seed)
    text, complaints = document(chosen, rates, quick=options.quick, seed=options.seed)
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    else:
        print(text)
    for complaint in complaints:
        print(f"NOT AS CLAIMED  {complaint}", file=sys.stderr)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(chosen)} tables in {minutes:.1f} minutes, {len(complaints)} claims broken", file=sys.stderr)
    return 1 if complaints else 0


def simulate(tables: Sequence[Table], *, quick: bool, workers: int, seed: int) -> dict[str, Rates]:
    """The rates of each table by its key; the same for any number of workers."""
    work = [(table.key, index, job) for table in tables for index, job in enumerate(table.jobs(quick))]
    parts: dict[str, dict[int, Rates]] = {table.key: {} for table in tables}
    began = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        futures = {executor.submit(run, job, seed): (key, index) for key, index, job in work}
        for done, future in enumerate(as_completed(futures), start=1):
            key, index = futures[future]
            parts[key][index] = future.result()
            _show(key, done, len(work), time.monotonic() - began)
    return {key: merged(found[index] for index in sorted(found)) for key, found in parts.items()}


def run(job: Job, seed: int) -> Rates:
    """One job, its own seed put behind the whole run's."""
    return job.work(replace(job.batch, seed=(seed, *job.batch.seed)))


def _show(key: str, done: int, total: int, seconds: float) -> None:
    """A line on stderr that replaces itself on a terminal; elsewhere one line for every twentieth part."""
    left = seconds / done * (total - done)
    bar = ("#" * (24 * done // total)).ljust(24, ".")
    line = f"[{bar}] {done}/{total} batches, table {key}, {seconds:.0f} s, about {left:.0f} s left"
    if sys.stderr.isatty():
        print(f"\r{line:<90}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done % max(1, total // 20) == 0:
        print(line, file=sys.stderr, flush=True)


def document(tables: Sequence[Table], rates: dict[str, Rates], *, quick: bool, seed: int) -> tuple[str, list[str]]:
    """(Markdown, claims that do not hold)."""
    lines = ["# Simulations", ""]
    lines.append(
        f"Made by `python -m stats.simulation --seed {seed}`. Brackets are 95 % intervals (Wilson). Each cell is held "
        "against the design's own simulation: **≠** marks differences of more than three standard errors of both."
    )
    if quick:
        lines.append("\n**Quick version**: few runs, wide intervals; not for quoting.")
    complaints: list[str] = []
    for table in tables:
        shown = rates[table.key]
        lines += ["", f"## {table.key}. {table.title}", "", table.note, "", _body(table, shown), ""]
        differing = outside(shown, table.expected)
        if table.expected:
            compared = sum(at in shown for at in table.expected)
            lines += [
                f"{compared - len(differing)} of {compared} cells agree with the design. {table.why}".rstrip(),
                "",
            ]
        said = list(table.broken(shown))
        lines.append("Claims: hold." if not said else "Claims broken:\n" + "\n".join(f"- {line}" for line in said))
        complaints += [f"{table.key}: {line}" for line in said]
    return "\n".join(lines) + "\n", complaints


def _body(table: Table, rates: Rates) -> str:
    if table.key == design.TABLE.key:
        return design.markdown_table(rates)
    return markdown(rates, table.corner, table.expected, stops=table.stops)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stats.simulation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few runs: a minute or two instead of about twenty")
    parser.add_argument("--tables", default="", help="comma-separated keys, such as 3a,3d (default: all)")
    parser.add_argument("--out", default="", metavar="FILE.md", help="write here instead of to the terminal")
    parser.add_argument("--seed", type=int, default=1, help="of the whole run (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    return parser.parse_args(arguments)
