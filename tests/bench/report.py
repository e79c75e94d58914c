"""How fast the statistics are: a report beside gbstats' own, folding of events, and a rebuild beside DuckDB's.

    python tests/bench/report.py [--quick] [--out FILE] [--gbstats-python PYTHON]

Both sides of a comparison are timed in this run, take turns and get the same input, and their results are compared.
Other processes share most machines, so each round is timed by the wall and by the process's own CPU time, which does
not count the waiting, and of all rounds the fastest is quoted, for both sides, with medians beside it. The report and
the fold are of one thread: their figures are CPU time, with the wall's beside them. Of the rebuild the least favourable
ratio is quoted; ours computes on one thread always and reads Parquet with as many as DuckDB has. Users are dense
indices, as `stats.fold` has them.

--out also writes the tables, as Markdown beside the JSON. gbstats wants an older numpy, so the peers run in an
environment of their own, made for this run unless --gbstats-python names one with gbstats 0.8.0 and duckdb 2.0.1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import scipy
from provenance import commit
from pyarrow import parquet
from report_ours import KINDS, TUNING, metrics, report

from stats.fold import Fold, rebuild_arms
from stats.moments import Moments

HERE = Path(__file__).resolve().parent
PEERS = ("gbstats==0.8.0", "duckdb==2.0.1")
IMPRESSIONS, VIEWERS, ARMS = 10_000_000, 500_000, 2
BATCHES = (100, 1_000, 10_000, 100_000)
HEADLINE_BATCH = 10_000
CALLS = 100
"""Reports of ours in one round: together about as long as one of gbstats'."""
AGREEMENT = 1e-9

Clock = Literal["cpu_s", "wall_s"]
CLOCKS: tuple[Clock, ...] = ("wall_s", "cpu_s")
Seconds = dict[Clock, float]
Rounds = dict[str, list[Seconds]]
Ask = Callable[..., Any]
Section = tuple[list[str], dict[str, float]]
"""The lines of a Markdown table, and the numbers behind it."""


def main() -> None:
    """Measure, print, and write the numbers where asked."""
    options = _options()
    with tempfile.TemporaryDirectory() as home, peers(options.gbstats_python or install(Path(home))) as ask:
        versions = ask("versions")
        setting = {
            "hardware": f"{processor()}, {os.cpu_count()} cores, shared with other processes",
            "versions": f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
            f"pyarrow {pa.__version__}; peers: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
            "commit": commit(),
            "command": " ".join(["python", *sys.argv]),
        }
        lines, numbers = [f"{setting['hardware']}; {setting['versions']}"], {}
        print(lines[0])
        for section in (
            partial(reports, ask, rounds=5 if options.quick else 40),
            partial(folding, events=1_000_000 if options.quick else 5_000_000, rounds=2 if options.quick else 7),
            partial(rebuilding, ask, Path(home), IMPRESSIONS // 10 if options.quick else IMPRESSIONS, rounds=7),
        ):
            table, found = section()
            print("\n" + "\n".join(table), flush=True)
            lines += ["", *table]
            numbers |= found
    numbers = {name: float(f"{value:.4g}") for name, value in numbers.items()}
    if options.out:
        options.out.write_text(json.dumps(setting | {"numbers": numbers}, indent=2) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + json.dumps(numbers))


def reports(ask: Ask, rounds: int) -> Section:
    """Ours, gbstats' report and its bare tests on the same sums; a round of each lasts about as long."""
    ten = metrics()
    ask("metrics_are", metrics=[asdict(metric) for metric in ten], tuning=TUNING)
    same_answers(report(ten)["metrics"], ask("gbstats_report"), ask("gbstats_bare", calls=1))
    times: Rounds = {"ours": [], "gbstats": [], "bare": []}
    for _ in range(rounds):
        times["ours"].append(timed(lambda: report(ten), CALLS)[0])
        times["gbstats"].append(ask("gbstats_report"))
        times["bare"].append(ask("gbstats_bare", calls=CALLS))
    labels = {
        "ours": "ours: limits, bounds, evidence, SRM",
        "gbstats": "gbstats process_experiment_results, sequential",
        "bare": "gbstats' bare test objects: limits and p only",
    }
    table = [
        f"| report of {len(KINDS)} metrics x {ARMS} arms | CPU ms, fastest | median | wall ms, fastest | over ours |",
        "| --- | --- | --- | --- | --- |",
    ]
    best, wall = fastest(times, "cpu_s"), fastest(times, "wall_s")
    middle = medians(times, "cpu_s")
    for name, label in labels.items():
        ms = " | ".join(f"{found[name] * 1e3:.2f}" for found in (best, middle, wall))
        table.append(f"| {label} | {ms} | {best[name] / best['ours']:.1f} |")
    return table, {
        "report_ms": best["ours"] * 1e3,
        "report_median_ms": middle["ours"] * 1e3,
        "report_wall_ms": wall["ours"] * 1e3,
        "gbstats_report_ms": best["gbstats"] * 1e3,
        "gbstats_report_median_ms": middle["gbstats"] * 1e3,
        "gbstats_report_wall_ms": wall["gbstats"] * 1e3,
        "gbstats_bare_tests_ms": best["bare"] * 1e3,
        "times_faster_than_gbstats": best["gbstats"] / best["ours"],
        "median_times_faster_than_gbstats": middle["gbstats"] / middle["ours"],
        "wall_times_faster_than_gbstats": wall["gbstats"] / wall["ours"],
    }


def same_answers(ours: Sequence[Mapping[str, Any]], theirs: Mapping[str, Any], bare: Mapping[str, Any]) -> None:
    """Raise SystemExit unless values, limits and p agree; after CUPED (their theta is another) to 1e-3 of the width."""
    for kind, mine, value, limits in zip(KINDS, ours, theirs["control"], bare["results"], strict=True):
        difference, low, high = mine["difference"]
        tolerance = 1e-3 if kind == "cuped" else AGREEMENT
        agree = all(
            math.isclose(a, b, abs_tol=tolerance * (high - low)) for a, b in zip((low, high), limits, strict=False)
        )
        agree &= kind == "cuped" or math.isclose(mine["p_value_differs"], limits[2], rel_tol=AGREEMENT)
        agree &= kind == "cuped" or math.isclose(mine["control"][0], value, rel_tol=AGREEMENT)
        if not agree:
            raise SystemExit(f"{mine['metric']}: we say {difference} in ({low}, {high}), gbstats says {limits}")


def folding(events: int, rounds: int) -> Section:
    """Events a second of one core, from arrays of a batch into per-user totals and the arm's moments."""
    rng = np.random.default_rng(1)
    users, x = rng.integers(0, VIEWERS, events), (rng.random(events) < 0.05).astype(np.float64)
    y = np.ones(events)

    def fold(batch: int, upto: int) -> Moments:
        running = Fold()
        for start in range(0, upto, batch):
            running.add(users[start : start + batch], x[start : start + batch], y[start : start + batch])
        return running.moments

    close(fold(HEADLINE_BATCH, events), rebuild_arms(users, np.zeros_like(users), x, y)[0])
    numbers = {}
    table = [
        f"| folding, {VIEWERS:,} users, one core: events a batch | events/CPU s, fastest | median | by the wall |",
        "| --- | --- | --- | --- |",
    ]
    for batch in BATCHES:
        upto = min(events, batch * 5000)
        times = {"ours": [timed(partial(fold, batch, upto))[0] for _ in range(rounds)]}
        found = (fastest(times, "cpu_s"), medians(times, "cpu_s"), fastest(times, "wall_s"))
        rates = [upto / seconds["ours"] for seconds in found]
        numbers[f"fold_events_per_s_batch_{batch}"] = rates[0]
        table.append(f"| {batch:,} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    return table, {"fold_events_per_s": numbers[f"fold_events_per_s_batch_{HEADLINE_BATCH}"]} | numbers


def rebuilding(ask: Ask, home: Path, rows: int, rounds: int) -> Section:
    """Impressions -> users -> moments of each arm: from one Parquet file, and from memory, with one thread and two."""
    path = home / "impressions.parquet"
    made = impressions(rows)
    parquet.write_table(made, path)
    ask("load", parquet=str(path))
    from_memory = partial(of_arms, numpy_columns(made))
    table = [
        f"| {rows:,} impressions to moments | threads | wall s, ours | DuckDB | ratio | CPU s, ours | DuckDB | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    numbers: dict[str, float] = {}
    for source in ("parquet", "memory"):
        for threads in (1, 2):
            times: Rounds = {"ours": [], "duckdb": []}
            for _ in range(rounds):
                seconds, moments = timed(partial(from_parquet, path, threads) if source == "parquet" else from_memory)
                times["ours"].append(seconds)
                answer = ask(f"duckdb_{source}", threads=threads)
                times["duckdb"].append(answer)
            for mine, (n, sx, sy, sxx, syy, sxy) in zip(moments, answer["rows"], strict=True):
                close(mine, Moments.from_sums(n, sx, sy, sxx, syy, sxy))
            row = f"| {source} | {threads} |"
            for clock in CLOCKS:
                best = fastest(times, clock)
                label = f"{source}_{threads}_thread{'s' if threads > 1 else ''}_{clock}"
                numbers |= {f"rebuild_{label}": best["ours"], f"duckdb_{label}": best["duckdb"]}
                numbers[f"rebuild_over_duckdb_{label}"] = best["ours"] / best["duckdb"]
                row += f" {best['ours']:.3f} | {best['duckdb']:.3f} | {best['ours'] / best['duckdb']:.2f} |"
            table.append(row)
    worst = max(value for name, value in numbers.items() if name.startswith("rebuild_over_duckdb"))
    table += ["", f"rebuild_over_duckdb is the least favourable of these ratios: {worst:.2f}."]
    return table, {"rebuild_over_duckdb": worst} | numbers


def impressions(rows: int) -> pa.Table:
    """user_id, arm, click of each impression, in no order; activity is skewed, every user is in one arm."""
    rng = np.random.default_rng(2)
    viewers = rows * VIEWERS // IMPRESSIONS
    user = rng.permutation(viewers)[(viewers * rng.random(rows) ** 2).astype(np.int64)]
    arm = rng.integers(0, ARMS, viewers, dtype=np.int8)[user]
    click = rng.random(rows) < rng.beta(2, 38, viewers)[user]
    return pa.table({"user_id": user, "arm": arm, "click": click.astype(np.int8)})


def numpy_columns(table: pa.Table) -> tuple[Any, Any, Any]:
    """(users, arms, clicks) as arrays."""
    user, arm, click = (table.column(name).to_numpy() for name in ("user_id", "arm", "click"))
    return user, arm, click


def of_arms(columns: tuple[Any, Any, Any]) -> list[Moments]:
    users, arms, clicks = columns
    return rebuild_arms(users, arms, clicks)


def from_parquet(path: Path, threads: int) -> list[Moments]:
    """Read with as many threads as DuckDB may use; the aggregation itself is of one thread."""
    pa.set_cpu_count(threads)
    return of_arms(numpy_columns(parquet.read_table(path, use_threads=threads > 1)))


def close(ours: Moments, theirs: Moments) -> None:
    """Raise SystemExit unless two moments agree to 1e-9; a co-moment relative to the spreads that bound it."""
    scales = {"m_xy": math.sqrt(theirs.m_xx * theirs.m_yy)}
    for name, value in theirs.to_dict().items():
        mine = ours.to_dict()[name]
        if not math.isclose(mine, value, rel_tol=AGREEMENT, abs_tol=AGREEMENT * scales.get(name, 0.0)):
            raise SystemExit(f"{name}: {mine} is not {value}")


def timed(call: Callable[[], Any], calls: int = 1) -> tuple[Seconds, Any]:
    """Seconds of one of the calls, by both clocks, and the last result."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        result = call()
    return {"wall_s": (time.perf_counter() - wall) / calls, "cpu_s": (time.process_time() - cpu) / calls}, result


def fastest(times: Rounds, clock: Clock) -> dict[str, float]:
    return {name: min(seconds[clock] for seconds in rounds) for name, rounds in times.items()}


def medians(times: Rounds, clock: Clock) -> dict[str, float]:
    return {name: statistics.median(seconds[clock] for seconds in rounds) for name, rounds in times.items()}


def install(home: Path) -> Path:
    """A fresh environment with the peers; returns its Python."""
    python = home / "peers" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", home / "peers"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
    return python


@contextmanager
def peers(python: Path) -> Iterator[Ask]:
    """The peers' process; what is yielded asks it for one call by name."""
    command = [python, HERE / "report_peers.py"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(call: str, **arguments: Any) -> Any:
        print(json.dumps({"call": call, **arguments}), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the peers stopped at {call!r}; what they said is above")
        return json.loads(line)

    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait()


def processor() -> str:
    """The processor's name as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, a tenth of the impressions")
    parser.add_argument("--out", type=Path, help="also write the numbers here as JSON")
    parser.add_argument("--gbstats-python", type=Path, help="the Python of an environment that has " + ", ".join(PEERS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
