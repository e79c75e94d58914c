"""Table 3d: a 5/95 A/A canary on skewed metrics, with and without the variance floor of the small arm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from stats.mixture import optimal_x
from stats.simulation import procedures as rules
from stats.simulation.figures import CANARY
from stats.simulation.jobs import Batch, Job, Table, above, batches
from stats.simulation.paths import contrast, draw
from stats.simulation.rates import Rates
from stats.simulation.worlds import Clicks, Spend, World, pool

ALPHA, TREATMENT, CONTROL, LOOKS = 0.05, 2000, 38_000, 200
METRICS: dict[str, World] = {
    "CTR 5 %": Clicks(),
    "CTR 0.4 %": Clicks(ctr=0.004, concentration=70.0),
    "lognormal, s = 1": Spend(sd=1.0),
    "lognormal, s = 2": Spend(sd=2.0),
    "lognormal, s = 2, capped q99.9": Spend(sd=2.0, cap=0.999),
    "lognormal, s = 2, capped q99": Spend(sd=2.0, cap=0.99),
}
FIRST = (20, 100, 400, 1000)
FLOOR, PROMOTE = "false worse, floor, from 20 users", "false promote at -5 %, floor"


def run(metric: str, batch: Batch) -> Rates:
    rng = np.random.default_rng(batch.seed)
    population = pool(METRICS[metric])
    steps = np.arange(1, LOOKS + 1)
    users = steps * (TREATMENT // LOOKS)
    t = draw(population, users, batch.runs, rng)
    c = draw(population, steps * (CONTROL // LOOKS), batch.runs, rng)
    base = population.noise * population.value**2
    tau2 = optimal_x(ALPHA, sided=1) * base * (1 / TREATMENT + 1 / CONTROL)
    shares = users / TREATMENT
    d, v = contrast(t, c, floor=False)
    plain = rules.always_valid(-d, v, tau2, ALPHA, sided=1)
    rates = {
        (metric, f"false worse, no floor, from {first}"): rules.tally(plain & (users >= first), shares)
        for first in FIRST
    }
    d, v = contrast(t, c)
    rates[metric, FLOOR] = rules.tally(rules.always_valid(-d, v, tau2, ALPHA, sided=1) & (users >= FIRST[0]), shares)
    # At the edge of H0 the treatment is worse by the margin exactly: its own values, scaled.
    worse = draw(pool(METRICS[metric], -0.05), users, batch.runs, rng)
    d, v = contrast(worse, c, 0.05)
    proved = rules.always_valid(d, v, tau2, ALPHA, sided=1) & (users >= FIRST[0])
    rates[metric, PROMOTE] = rules.tally(proved, shares)
    return rates


def jobs(quick: bool) -> Sequence[Job]:
    runs = 200 if quick else 2000
    return [job for k, metric in enumerate(METRICS) for job in batches(partial(run, metric), runs, 100, (34, k))]


def broken(rates: Rates) -> Sequence[str]:
    return above(rates, ALPHA, lambda _row, column: column in {FLOOR, PROMOTE})


TABLE = Table(
    "3d",
    "A 5/95 canary without any effect: 2,000 against 38,000 users, 200 looks",
    "metric",
    "P(the gate calls the treatment worse) by the first look at which it may decide, without and with the variance "
    "floor of the small arm; and P(promote) at a margin of 5 % when the treatment is worse by exactly 5 %. One-sided "
    "alpha .05.",
    jobs,
    broken,
    expected=CANARY,
)
