"""Table 3e: a 5 → 10 → 25 → 50 % ramp without effect while the CTR drifts: pooled arms against strata."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from stats.mixture import optimal_x
from stats.simulation import procedures as rules
from stats.simulation.figures import RAMP
from stats.simulation.jobs import Batch, Job, Table, above, batches
from stats.simulation.paths import Sums, contrast, draw
from stats.simulation.rates import Rates
from stats.simulation.worlds import Clicks, pool

ALPHA, LOOKS = 0.05, 10
PHASES = ((0.05, 0.050), (0.10, 0.056), (0.25, 0.046), (0.50, 0.053))
POOLED, STRATIFIED, EQUAL = "arms pooled over phases", "strata (phase), overlap weights", "equal arms, pooled"


def run(users_a_phase: int, batch: Batch) -> Rates:
    rng = np.random.default_rng(batch.seed)
    row = f"{users_a_phase // 1000}k users a phase"
    shares = np.arange(1, 4 * LOOKS + 1) / (4 * LOOKS)
    ramp = [_phase(users_a_phase, split, ctr, batch.runs, rng) for split, ctr in PHASES]
    equal = [_phase(users_a_phase, 0.5, ctr, batch.runs, rng) for _, ctr in PHASES]
    base = pool(Clicks()).noise * 0.05**2
    tau2 = optimal_x(ALPHA, sided=2) * base * 4 / (4 * users_a_phase)
    return {
        (row, column): rules.tally(rules.always_valid(d, v, tau2, ALPHA, sided=2), shares)
        for column, (d, v) in {
            POOLED: _pooled(ramp),
            STRATIFIED: stratified(ramp),
            EQUAL: _pooled(equal),
        }.items()
    }


def _phase(users: int, split: float, ctr: float, runs: int, rng: np.random.Generator) -> tuple[Sums, Sums]:
    """(treatment, control) sums inside one phase, at its 10 looks."""
    steps = np.arange(1, LOOKS + 1)
    in_treatment = (steps * (users * split / LOOKS)).astype(np.int64)
    population = pool(Clicks(ctr=ctr))
    return draw(population, in_treatment, runs, rng), draw(
        population, steps * (users // LOOKS) - in_treatment, runs, rng
    )


def _pooled(phases: list[tuple[Sums, Sums]]) -> tuple[rules.Array, rules.Array]:
    """The planted error of unequal ramps (and the right thing for equal arms): everything of an arm together."""
    found, before = [], None
    for t, c in phases:
        joined = (t, c) if before is None else (t + _last(before[0]), c + _last(before[1]))
        found.append(contrast(*joined))
        before = joined
    return np.concatenate([d for d, _ in found], axis=1), np.concatenate([v for _, v in found], axis=1)


def stratified(phases: list[tuple[Sums, Sums]]) -> tuple[rules.Array, rules.Array]:
    """Overlap weights n_T n_C / (n_T + n_C) over phases, as `stats.strata.stratified` has them."""
    found: list[tuple[rules.Array, rules.Array]] = []
    closed: list[tuple[rules.Array, rules.Array, rules.Array]] = []
    for t, c in phases:
        d, v = contrast(t, c)
        w = np.broadcast_to(t.n * c.n / (t.n + c.n), d.shape).astype(np.float64)
        parts = [*closed, (w, d, v)]
        total = np.asarray(sum(weight for weight, _, _ in parts))
        found.append(
            (
                sum(weight * dd for weight, dd, _ in parts) / total,
                sum(weight**2 * vv for weight, _, vv in parts) / total**2,
            )
        )
        closed.append((w[:, -1:], d[:, -1:], v[:, -1:]))
    return np.concatenate([d for d, _ in found], axis=1), np.concatenate([v for _, v in found], axis=1)


def _last(sums: Sums) -> Sums:
    return Sums(sums.n[-1:], sums.x[:, -1:], sums.y[:, -1:], sums.xx[:, -1:], sums.yy[:, -1:], sums.xy[:, -1:])


def jobs(quick: bool) -> Sequence[Job]:
    small, large = (150, 60) if quick else (2000, 1000)
    return batches(partial(run, 8000), small, 250, (35, 0)) + batches(partial(run, 40_000), large, 50, (35, 1))


def broken(rates: Rates) -> Sequence[str]:
    return above(rates, ALPHA, lambda _row, column: column in {STRATIFIED, EQUAL})


TABLE = Table(
    "3e",
    "A ramp 5 → 10 → 25 → 50 % without any effect, CTR 5.0 / 5.6 / 4.6 / 5.3 % by phase",
    "traffic",
    "P(the two-sided sequence ever excludes no effect), alpha .05, 10 looks a phase. Crossfade's own ramps keep the "
    "arms equal (last column), where pooling is harmless.",
    jobs,
    broken,
    expected=RAMP,
)
