"""How fast the statistics are: a report beside gbstats' own, folding of events, and a rebuild beside DuckDB's.

    python tests/bench/report.py [--quick] [--out FILE] [--gbstats-python PYTHON]

Both sides of a comparison are timed in this run, take turns and get the same input, and their results are compared.
Where other processes share the machine, the fastest of many rounds says what the code costs: that is what is quoted,
for both sides, with the medians beside it. gbstats wants an older numpy, so the peers run in an environment of their
own, made for this run unless --gbstats-python names one that has gbstats 0.8.0 and duckdb 2.0.1.
"""

from __future__ import annotations

import argparse
import json
import math
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
from typing import Any

import numpy as np
import pyarrow as pa
import scipy
from pyarrow import parquet
from report_ours import KINDS, TUNING, metrics, report

from stats.fold import Fold, rebuild_arms
from stats.moments import Moments

HERE = Path(__file__).resolve().parent
PEERS = ("gbstats==0.8.0", "duckdb==2.0.1")
IMPRESSIONS, VIEWERS, ARMS = 10_000_000, 500_000, 2
BATCHES = (100, 1_000, 10_000, 100_000)
HEADLINE_BATCH = 10_000
AGREEMENT = 1e-9

Times = dict[str, list[float]]
Ask = Callable[..., Any]


def main() -> None:
    """Measure, print, and write the numbers where asked."""
    options = _options()
    with tempfile.TemporaryDirectory() as home, peers(options.gbstats_python or install(Path(home))) as ask:
        versions = ask("versions")
        setting = {
            "hardware": f"{processor()}, {ARMS} cores, shared with other processes",
            "versions": f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, "
            f"pyarrow {pa.__version__}; peers: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
            "commit": commit(),
            "command": " ".join(["python", *sys.argv]),
        }
        print(f"{setting['hardware']}; {setting['versions']}\n")
        numbers = reports(ask, rounds=10 if options.quick else 60)
        numbers |= folding(events=1_000_000 if options.quick else 5_000_000, rounds=2 if options.quick else 5)
        rows = IMPRESSIONS // 10 if options.quick else IMPRESSIONS
        numbers |= rebuilding(ask, Path(home), rows, rounds=3 if options.quick else 7)
    numbers = {name: float(f"{value:.4g}") for name, value in numbers.items()}
    if options.out:
        options.out.write_text(json.dumps(setting | {"numbers": numbers}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


def reports(ask: Ask, rounds: int) -> dict[str, float]:
    """Ours, gbstats' report and its bare tests on the same sums."""
    ten = metrics()
    ask("metrics_are", metrics=[asdict(metric) for metric in ten], tuning=TUNING)
    same_answers(report(ten)["metrics"], ask("gbstats_report"), ask("gbstats_bare"))
    times: Times = {"ours": [], "gbstats": [], "bare": []}
    for _ in range(rounds):
        times["ours"] += [timed(lambda: report(ten))[0] for _ in range(20)]
        times["gbstats"].append(ask("gbstats_report")["s"])
        times["bare"].append(ask("gbstats_bare")["s"])
    best, middle = fastest(times), medians(times)
    labels = {
        "ours": "ours: limits, bounds, evidence, SRM",
        "gbstats": "gbstats process_experiment_results, sequential",
        "bare": "gbstats' bare test objects: limits and p only",
    }
    print(f"| report of {len(KINDS)} metrics x {ARMS} arms | fastest, ms | median, ms | over ours |")
    print("| --- | --- | --- | --- |")
    for name, label in labels.items():
        over = best[name] / best["ours"]
        print(f"| {label} | {best[name] * 1e3:.2f} | {middle[name] * 1e3:.2f} | {over:.1f} |")
    return {
        "report_ms": best["ours"] * 1e3,
        "report_median_ms": middle["ours"] * 1e3,
        "gbstats_report_ms": best["gbstats"] * 1e3,
        "gbstats_report_median_ms": middle["gbstats"] * 1e3,
        "gbstats_bare_tests_ms": best["bare"] * 1e3,
        "times_faster_than_gbstats": best["gbstats"] / best["ours"],
        "median_times_faster_than_gbstats": middle["gbstats"] / middle["ours"],
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


def folding(events: int, rounds: int) -> dict[str, float]:
    """Events a second of one core, from arrays of a batch into per-user totals and the arm's moments."""
    rng = np.random.default_rng(1)
    users, x = rng.integers(0, VIEWERS, events), (rng.random(events) < 0.05).astype(np.float64)
    y = np.ones(events)

    def fold(batch: int, upto: int) -> Moments:
        running = Fold()
        for start in range(0, upto, batch):
            running.add(users[start : start + batch], x[start : start + batch], y[start : start + batch])
        return running.moments

    rates = {}
    print(
        f"\n| folding, {VIEWERS:,} users, one core: events a batch | events/s, fastest | median |\n| --- | --- | --- |"
    )
    for batch in BATCHES:
        upto = min(events, batch * 5000)
        seconds = [timed(lambda batch=batch, upto=upto: fold(batch, upto))[0] for _ in range(rounds)]
        rates[batch] = upto / min(seconds)
        print(f"| {batch:,} | {rates[batch]:,.0f} | {upto / statistics.median(seconds):,.0f} |")
    close(fold(HEADLINE_BATCH, events), rebuild_arms(users, np.zeros_like(users), x, y)[0])
    return {"fold_events_per_s": rates[HEADLINE_BATCH]} | {
        f"fold_events_per_s_batch_{batch}": rate for batch, rate in rates.items()
    }


def rebuilding(ask: Ask, home: Path, rows: int, rounds: int) -> dict[str, float]:
    """Impressions -> users -> moments of each arm: from one Parquet file, and from memory, with one thread and two."""
    path = home / "impressions.parquet"
    table = impressions(rows)
    parquet.write_table(table, path)
    ask("load", parquet=str(path))
    from_memory = partial(of_arms, numpy_columns(table))
    print(f"\n| {rows:,} impressions to moments | threads | ours, s | DuckDB, s | ours over DuckDB | of the medians |")
    print("| --- | --- | --- | --- | --- | --- |")
    numbers: dict[str, float] = {}
    for source in ("parquet", "memory"):
        for threads in (1, 2):
            times: Times = {"ours": [], "duckdb": []}
            for _ in range(rounds):
                seconds, moments = timed(partial(from_parquet, path, threads) if source == "parquet" else from_memory)
                times["ours"].append(seconds)
                answer = ask(f"duckdb_{source}", threads=threads)
                times["duckdb"].append(answer["s"])
            for mine, (n, sx, sy, sxx, syy, sxy) in zip(moments, answer["rows"], strict=True):
                close(mine, Moments.from_sums(n, sx, sy, sxx, syy, sxy))
            best, middle = fastest(times), medians(times)
            over, over_median = best["ours"] / best["duckdb"], middle["ours"] / middle["duckdb"]
            print(
                f"| {source} | {threads} | {best['ours']:.3f} | {best['duckdb']:.3f} | {over:.2f} | {over_median:.2f} |"
            )
            label = f"{source}_{threads}_threads"
            numbers |= {f"rebuild_{label}_s": best["ours"], f"duckdb_{label}_s": best["duckdb"]}
            numbers |= {f"rebuild_over_duckdb_{label}": over}
    worst = max(value for name, value in numbers.items() if name.startswith("rebuild_over_duckdb"))
    print("\nrebuild_over_duckdb is the least favourable of the four.")
    return {"rebuild_over_duckdb": worst} | numbers


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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def fastest(times: Times) -> dict[str, float]:
    return {name: min(values) for name, values in times.items()}


def medians(times: Times) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


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


def commit() -> str:
    """The commit that is measured, or "unknown" outside a repository."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, a tenth of the impressions")
    parser.add_argument("--out", type=Path, help="also write the numbers here as JSON")
    parser.add_argument("--gbstats-python", type=Path, help="the Python of an environment that has " + ", ".join(PEERS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
