"""The peers' side of report.py, run by it inside an environment with gbstats and duckdb.

A line of JSON in, a line of JSON out, one timed call a line, so that both sides can take turns. Only the call itself is
timed: gbstats gets its rows, and DuckDB its table, before the clock starts.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib.metadata import version

import duckdb
from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
from gbstats.gbstats import process_experiment_results
from gbstats.models.statistics import RatioStatistic, RegressionAdjustedStatistic, SampleMeanStatistic

PER_ARM = """
WITH users AS (
    SELECT arm, user_id, sum(click)::DOUBLE AS x, count(*)::DOUBLE AS y FROM {source} GROUP BY arm, user_id
)
SELECT count(*), sum(x), sum(y), sum(x * x), sum(y * y), sum(x * y) FROM users GROUP BY arm ORDER BY arm
"""
STATISTIC = {"mean": "mean", "ratio": "ratio", "cuped": "mean_ra"}


def row_of(sums, arm):
    """One metric of one arm as gbstats expects its SQL to give it."""
    return {
        "dimension": "",
        "variation": arm,
        "users": sums["n"],
        "count": sums["n"],
        "main_sum": sums["sx"],
        "main_sum_squares": sums["sxx"],
        "denominator_sum": sums["sy"],
        "denominator_sum_squares": sums["syy"],
        "main_denominator_sum_product": sums["sxy"],
        "covariate_sum": sums["sc"],
        "covariate_sum_squares": sums["scc"],
        "main_covariate_sum_product": sums["sxc"],
    }


def report_input(metrics, tuning):
    """Everything for process_experiment_results, one query a metric."""
    settings = {
        metric["name"]: {
            "id": metric["name"],
            "name": metric["name"],
            "statistic_type": STATISTIC[metric["kind"]],
            "main_metric_type": "count",
            "denominator_metric_type": "count" if metric["kind"] == "ratio" else None,
            "covariate_metric_type": "count" if metric["kind"] == "cuped" else None,
        }
        for metric in metrics
    }
    analysis = {
        "var_names": ["control", "treatment"],
        "var_ids": ["control", "treatment"],
        "weights": [0.5, 0.5],
        "stats_engine": "frequentist",
        "sequential_testing_enabled": True,
        "sequential_tuning_parameter": tuning,
        "difference_type": "relative",
    }
    queries = [
        {
            "rows": [
                {name if name in {"dimension", "variation"} else f"m0_{name}": value for name, value in row.items()}
                for row in (row_of(metric[arm], arm) for arm in ("control", "treatment"))
            ],
            "metrics": [metric["name"]],
        }
        for metric in metrics
    ]
    return {"metrics": settings, "analyses": [analysis], "query_results": queries}


def statistic(metric, arm):
    """The frozen statistic of one arm, for gbstats' bare test objects."""
    sums = metric[arm]
    post = SampleMeanStatistic(n=sums["n"], sum=sums["sx"], sum_squares=sums["sxx"])
    if metric["kind"] == "ratio":
        below = SampleMeanStatistic(n=sums["n"], sum=sums["sy"], sum_squares=sums["syy"])
        return RatioStatistic(n=sums["n"], m_statistic=post, d_statistic=below, m_d_sum_of_products=sums["sxy"])
    if metric["kind"] == "cuped":
        before = SampleMeanStatistic(n=sums["n"], sum=sums["sc"], sum_squares=sums["scc"])
        return RegressionAdjustedStatistic(
            n=sums["n"], post_statistic=post, pre_statistic=before, post_pre_sum_of_products=sums["sxc"], theta=0
        )
    return post


def bare_tests(metrics, tuning):
    """The same intervals without the report around them; absolute, so that they compare with ours."""
    config = SequentialConfig(difference_type="absolute", sequential_tuning_parameter=tuning)
    results = []
    for metric in metrics:
        test = SequentialTwoSidedTTest(statistic(metric, "control"), statistic(metric, "treatment"), config)
        result = test.compute_result()
        results.append([float(end) for end in result.ci] + [float(result.p_value)])
    return results


def timed(call, times=1):
    """(wall and CPU seconds of one call, the last result); CPU time is that of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        result = call()
    return {"wall_s": (time.perf_counter() - wall) / times, "cpu_s": (time.process_time() - cpu) / times}, result


class Peers:
    """What the peers keep between two lines."""

    def __init__(self) -> None:
        self.metrics = []
        self.tuning = 0.0
        self.connection = duckdb.connect()
        self.parquet = ""

    def versions(self, **_):
        names = ("gbstats", "duckdb", "numpy", "pandas")
        return {"python": platform.python_version(), **{name: version(name) for name in names}}

    def metrics_are(self, metrics, tuning):
        self.metrics, self.tuning = metrics, tuning

    def gbstats_report(self):
        data = report_input(self.metrics, self.tuning)
        seconds, results = timed(lambda: process_experiment_results(data))
        arms = [result["analyses"][0]["dimensions"][0]["variations"] for result in results]
        return seconds | {"control": [arm[0]["stats"]["mean"] for arm in arms]}

    def gbstats_bare(self, calls):
        seconds, results = timed(lambda: bare_tests(self.metrics, self.tuning), calls)
        return seconds | {"results": results}

    def load(self, parquet):
        self.parquet = parquet
        self.connection.read_parquet(parquet).create("impressions")

    def duckdb_memory(self, threads):
        self.connection.execute(f"SET threads = {threads}")
        return self._aggregate(self.connection, "impressions")

    def duckdb_parquet(self, threads):
        with duckdb.connect() as fresh:  # nothing of an earlier call is cached
            fresh.execute(f"SET threads = {threads}")
            return self._aggregate(fresh, f"'{self.parquet}'")

    def _aggregate(self, connection, source):
        seconds, rows = timed(lambda: connection.execute(PER_ARM.format(source=source)).fetchall())
        return seconds | {"rows": rows}


def main() -> None:
    peers = Peers()
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(peers, asked.pop("call"))(**asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
