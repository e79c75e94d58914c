"""Table 3f: finding a sample-ratio mismatch at 200 looks, chi-square against the e-process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import chi2

from stats.simulation import procedures as rules
from stats.simulation.figures import MISMATCH
from stats.simulation.jobs import Batch, Job, Table, above, batches
from stats.simulation.rates import Rates
from stats.srm import INVALID_LOG_E

USERS, LOOKS = 200_000, 200
SHARES = (0.5, 0.505, 0.51)
CONCENTRATIONS = (100.0, 2500.0, 10_000.0)


def run(share: float, batch: Batch) -> Rates:
    rng = np.random.default_rng(batch.seed)
    first = rng.binomial(USERS // LOOKS, share, (batch.runs, LOOKS)).cumsum(axis=1)
    total = np.arange(1, LOOKS + 1) * (USERS // LOOKS)
    statistic = (2 * first - total) ** 2 / total
    row = "fair" if share == 0.5 else f"{share:.1%} in the first arm"
    last = np.arange(LOOKS) == LOOKS - 1
    masks = {
        "chi-square once, .001": (statistic >= chi2.isf(0.001, 1)) & last,
        "chi-square at every look, .001": statistic >= chi2.isf(0.001, 1),
        "chi-square at every look, .01": statistic >= chi2.isf(0.01, 1),
    }
    for k in CONCENTRATIONS:
        masks[f"e-process, k = {k:,.0f}"] = log_e(first, total, k) >= INVALID_LOG_E
    return {(row, column): rules.tally(mask, total / USERS) for column, mask in masks.items()}


def log_e(first: NDArray[np.int64], total: NDArray[np.int64], k: float) -> NDArray[np.float64]:
    """`stats.srm.log_e_srm` for an even split, over arrays."""
    half = k / 2
    rest = total - first
    return np.asarray(
        gammaln(half + first) + gammaln(half + rest) - gammaln(k + total)
        - 2 * gammaln(half) + gammaln(k) + total * np.log(2.0)
    )  # fmt: skip


def jobs(quick: bool) -> Sequence[Job]:
    fair, unfair = (2000, 500) if quick else (20_000, 4000)
    found = []
    for i, share in enumerate(SHARES):
        found += batches(partial(run, share), fair if share == 0.5 else unfair, 1000, (36, i))
    return found


def broken(rates: Rates) -> Sequence[str]:
    return above(rates, 0.001, lambda row, column: row == "fair" and column.startswith("e-process"))


TABLE = Table(
    "3f",
    "Sample-ratio mismatch, 200,000 users, 200 looks",
    "split",
    "P(called invalid) / mean stop as a share of the users; the e-process at E >= 1000.",
    jobs,
    broken,
    stops=True,
    expected=MISMATCH,
)
