"""Table 2c: users who stay and keep acting: which ways of counting time keep the error, and which do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stats.mixture import log_e_two_sided, optimal_x
from stats.simulation import procedures as rules
from stats.simulation.figures import GROWING
from stats.simulation.jobs import Batch, Job, Table, batches
from stats.simulation.paths import Sums, contrast, draw, z_score
from stats.simulation.rates import Rate, Rates
from stats.simulation.worlds import Clicks, pool

ALPHA, USERS, LOOKS = 0.05, 1000, 100
WORLD = Clicks()
COHORT, ALL_IN = "closed cohorts (what the gate reads)", "all users in from the start, cumulative CTR"
STAGGERED, DRIFTING = "staggered entry, cumulative CTR", "all in, taste drifting by day"
TOTALS = "engagement so far, all in, hourly for 60 days"
HOURS = 60 * 24
ROLLING = "today's CTR only, 100 days"
PEEK, IMPRESSIONS = "user z, every look", "sequence on impressions"
COUNTS, INFORMATION = "sequence, time counted in users", "sequence, time counted in information"
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _People:
    """One arm of many runs: taste and activity per look, shape (runs, users); joined: the look of the first visit."""

    taste: Array
    activity: Array
    joined: NDArray[np.int64]


def _people(runs: int, staggered: bool, rng: np.random.Generator) -> _People:
    shape = (runs, USERS)
    activity = rng.lognormal(np.log(WORLD.impressions) - WORLD.activity_sd**2 / 2, WORLD.activity_sd, shape)
    taste = rng.beta(WORLD.ctr * WORLD.concentration, (1 - WORLD.ctr) * WORLD.concentration, shape)
    joined = rng.integers(0, LOOKS, shape) if staggered else np.zeros(shape, dtype=np.int64)
    return _People(taste, activity / LOOKS, joined)


def _visits(people: _People, drifting: bool, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """(clicks, impressions) of every user at each look; drifting: half of a user's taste is redrawn every ten looks."""
    taste = people.taste
    for look in range(LOOKS):
        if drifting and look % 10 == 0:
            fresh = rng.beta(WORLD.ctr * WORLD.concentration, (1 - WORLD.ctr) * WORLD.concentration, taste.shape)
            taste = (people.taste + fresh) / 2
        y = rng.poisson(people.activity * (people.joined <= look))
        yield rng.binomial(y, taste).astype(np.float64), y.astype(np.float64)


def _sums(visits: Iterator[tuple[Array, Array]], *, rolling: bool) -> Sums:
    """Per-look sums over users of totals so far (rolling: of this look alone). n counts users with a visit."""
    rows, x, y = [], None, None
    for dx, dy in visits:
        x, y = (dx, dy) if rolling or x is None or y is None else (x + dx, y + dy)
        seen = np.maximum(np.count_nonzero(y, axis=1), 2)
        rows.append((seen, x.sum(axis=1), y.sum(axis=1), (x * x).sum(axis=1), (y * y).sum(axis=1), (x * y).sum(axis=1)))
    n, *sums = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    return Sums(n, sums[0], np.maximum(sums[1], 1.0), *sums[2:])


def run_ctr(pattern: str, batch: Batch) -> Rates:
    rng = np.random.default_rng(batch.seed)
    if pattern == COHORT:
        looks = np.arange(1, LOOKS + 1) * (USERS // LOOKS)
        t, c = draw(pool(WORLD), looks, batch.runs, rng), draw(pool(WORLD), looks, batch.runs, rng)
    else:
        t, c = (
            _sums(
                _visits(_people(batch.runs, pattern == STAGGERED, rng), pattern == DRIFTING, rng),
                rolling=pattern == ROLLING,
            )
            for _ in range(2)
        )
    d, v = contrast(t, c)
    p = (t.x + c.x) / (t.y + c.y)
    v_impressions = p * (1 - p) * (1 / t.y + 1 / c.y)
    final = pool(WORLD)
    planned = 2 * final.noise * final.value**2 / USERS
    tau2 = optimal_x(ALPHA, sided=2) * planned
    enough = np.minimum(t.n, c.n) >= 50
    masks = {
        PEEK: rules.peeks(z_score(d, v), ALPHA, sided=2),
        IMPRESSIONS: rules.always_valid(d, v_impressions, tau2, ALPHA, sided=2),
        COUNTS: _counted_in_users(d, v, np.full(LOOKS, USERS) if pattern == ROLLING else np.asarray(t.n)),
        INFORMATION: rules.always_valid(d, v, tau2, ALPHA, sided=2),
    }
    return {(pattern, column): _ever(mask & enough) for column, mask in masks.items()}


def run_totals(batch: Batch) -> Rates:
    """Actions so far of users who are all in from the start and alike, the worst case; one look an hour."""
    rng = np.random.default_rng(batch.seed)
    values, variances = [], []
    for _ in range(2):
        total = np.zeros((batch.runs, USERS))
        means: list[Array] = []
        noise: list[Array] = []
        for _ in range(HOURS):
            total += rng.poisson(0.1, total.shape)
            means.append(total.mean(axis=1))
            noise.append(total.var(axis=1, ddof=1) / USERS)
        values.append(np.stack(means, axis=1))
        variances.append(np.stack(noise, axis=1))
    d, v = values[0] - values[1], variances[0] + variances[1]
    passed = np.arange(1, HOURS + 1)
    hourly, hourly_v = d / passed, v / passed**2
    planned = float(hourly_v[:, -1].mean())
    masks = {
        PEEK: rules.peeks(z_score(d, v), ALPHA, sided=2),
        COUNTS: _counted_in_users(d, v, np.full(HOURS, USERS)),
        INFORMATION: rules.always_valid(hourly, hourly_v, optimal_x(ALPHA, sided=2) * planned, ALPHA, sided=2),
    }
    return {(TOTALS, column): _ever(mask) for column, mask in masks.items()}


def _counted_in_users(d: Array, v: Array, users: NDArray[np.int64]) -> rules.Mask:
    """The form whose clock is the number of users: x = x* n / N whatever the variance does."""
    x = optimal_x(ALPHA, sided=2) * np.broadcast_to(users / USERS, d.shape)
    z = z_score(d, v)
    return np.asarray(log_e_two_sided(z, np.ones_like(z), x) >= -np.log(ALPHA))


def _ever(mask: rules.Mask) -> Rate:
    return Rate(int(mask.any(axis=1).sum()), mask.shape[0])


def jobs(quick: bool) -> Sequence[Job]:
    runs = 60 if quick else 2500
    found = batches(partial(run_ctr, COHORT), 10 * runs if quick else runs, 500, (37, 0))
    for k, pattern in enumerate((ALL_IN, STAGGERED, DRIFTING, ROLLING), start=1):
        found += batches(partial(run_ctr, pattern), runs, 20, (37, k))
    return found + batches(run_totals, runs // 4, 10, (37, 9))


def broken(rates: Rates) -> Sequence[str]:
    rate = rates[COHORT, INFORMATION]
    return [f"{COHORT}: {rate.text()} is above {ALPHA}"] if rate.value > ALPHA else []


TABLE = Table(
    "2c",
    "Users who keep acting: an A/A test with 1,000 users an arm, 100 looks",
    "arrival",
    "P(ever called different), two-sided alpha .05. Only closed cohorts have increments that are independent, so only "
    "they are gated; the other rows say what would happen otherwise.",
    jobs,
    broken,
    expected=GROWING,
    why="Rows that are not gated depend on how often users return, which the design leaves open; only the first row "
    "carries a claim.",
)
