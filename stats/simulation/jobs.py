"""A table is many jobs, each a seeded batch of runs that another process can do; their rates add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stats.simulation.expected import Expectations
from stats.simulation.rates import Rates


@dataclass(frozen=True, slots=True)
class Batch:
    """What one job is told: how many runs, and the seed that makes them its own."""

    runs: int
    seed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """`work(batch)` returns the rates of one batch; it must be a module-level function or a partial of one."""

    work: Callable[[Batch], Rates]
    batch: Batch


@dataclass(frozen=True, slots=True)
class Table:
    """One table: `jobs(quick)` makes its rates, `broken(rates)` names the claims that they contradict.

    note: what the reader has to know to read it; stops: whether cells show the mean stop as well. expected: what the
    design says of its cells; why: why some of them may differ.
    """

    key: str
    title: str
    corner: str
    note: str
    jobs: Callable[[bool], Sequence[Job]]
    broken: Callable[[Rates], Sequence[str]]
    stops: bool = False
    expected: Expectations = field(default_factory=dict)
    why: str = ""


def batches(work: Callable[[Batch], Rates], runs: int, size: int, seed: Sequence[int]) -> list[Job]:
    """`runs` runs in batches of at most `size`, every batch with a seed of its own."""
    return [Job(work, Batch(min(size, runs - start), (*seed, start))) for start in range(0, runs, size)]


def above(rates: Rates, alpha: float, cells: Callable[[str, str], bool]) -> list[str]:
    """A sentence for each chosen cell whose rate is above alpha (the point estimate, not only its interval)."""
    return [
        f"{row} / {column}: {rate.text()} is above {alpha}"
        for (row, column), rate in rates.items()
        if cells(row, column) and rate.value > alpha
    ]
