"""Table 3c: what each design costs, computed exactly (no random numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from stats.horizon import Sided
from stats.power import Design, Plan
from stats.simulation.jobs import Batch, Job, Table
from stats.simulation.rates import Rate, Rates

DESIGNS: dict[Design, str] = {"reflection": "reflection", "hybrid": "hybrid", "always_valid": "always valid"}
CASES: tuple[tuple[float, Sided, float], ...] = (
    (0.05, 1, 0.8),
    (0.05, 1, 0.9),
    (0.025, 1, 0.8),
    (0.025, 1, 0.9),
    (0.05, 2, 0.8),
    (0.05, 2, 0.9),
)


def run(alpha: float, sided: Sided, power: float, _batch: Batch) -> Rates:
    """The cost is kept where a mean stop is kept; there is nothing to count."""
    fixed = Plan("fixed", alpha, power, sided).drift
    row = f"{sided}-sided {alpha:g}, power {power:g}"
    rates: dict[tuple[str, str], Rate] = {}
    for design, name in DESIGNS.items():
        plan = Plan(design, alpha, power, sided)
        cost = (plan.drift / fixed) ** 2
        rates[row, f"{name}: largest"] = Rate(0, 1, cost)
        rates[row, f"{name}: mean"] = Rate(0, 1, cost * plan.mean_share)
    return rates


def markdown_table(rates: Rates) -> str:
    """Costs instead of rates: `1.12, .80` is the largest and the mean information."""
    rows = list(dict.fromkeys(row for row, _ in rates))
    lines = [f"| test | {' | '.join(DESIGNS.values())} |", "|" + "---|" * (len(DESIGNS) + 1)]
    for row in rows:
        cells = [
            f"{rates[row, f'{name}: largest'].mean_stop:.2f}, mean {rates[row, f'{name}: mean'].mean_stop:.2f}"
            for name in DESIGNS.values()
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def jobs(_quick: bool) -> Sequence[Job]:
    return [Job(partial(run, *case), Batch(1, (0,))) for case in CASES]


def broken(rates: Rates) -> Sequence[str]:
    return [
        f"{row} / {column}: {rate.mean_stop:.2f} times a fixed test's information, more than 1.15"
        for (row, column), rate in rates.items()
        if column == "reflection: largest" and rate.mean_stop > 1.15
    ]


TABLE = Table(
    "3c",
    "Information needed, in units of the one-look test with the same power (exact, 100 looks)",
    "test",
    "Largest: what to plan for. Mean: where the decision falls on average when the effect is as planned.",
    jobs,
    broken,
)
