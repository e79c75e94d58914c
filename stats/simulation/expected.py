"""What the design says each cell should be, to hold the simulated rates against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stats.simulation.rates import Rate, Rates

SIGMAS = 3.0
"""Cells further from the design than this many standard errors of both simulations are marked."""
STOP_TOLERANCE = 0.01
STOP_SD = 0.5
"""No mean stop varies more than this from run to run."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A rate of the design as printed there: from `runs` runs, rounded to `digits`; its mean stop, where it has one."""

    value: float
    runs: int
    digits: int = 3
    stop: float | None = None

    def agrees(self, rate: Rate) -> bool:
        """Whether the difference is within Monte-Carlo error of both, plus the rounding."""
        pooled = (rate.hits + self.value * self.runs) / (rate.runs + self.runs)
        error = math.sqrt(max(pooled * (1 - pooled), 0.25 / self.runs) * (1 / rate.runs + 1 / self.runs))
        near = abs(rate.value - self.value) <= SIGMAS * error + 0.5 * 10**-self.digits
        return near and (self.stop is None or abs(rate.mean_stop - self.stop) <= _stop_tolerance(rate.runs, self.runs))

    def text(self) -> str:
        shown = f"{self.value:.{self.digits}f}".removeprefix("0")
        return shown if self.stop is None else f"{shown} / {self.stop:.2f}"


def _stop_tolerance(*runs: int) -> float:
    return STOP_TOLERANCE + SIGMAS * STOP_SD * math.sqrt(sum(1 / count for count in runs))


Expectations = Mapping[tuple[str, str], Expected]


def row(
    name: str, columns: Sequence[str], values: Sequence[float | None], runs: int, digits: int = 3
) -> dict[tuple[str, str], Expected]:
    """A row of a table, one value for each column; None where the design has none."""
    return {
        (name, column): Expected(value, runs, digits)
        for column, value in zip(columns, values, strict=True)
        if value is not None
    }


def column(
    name: str, rows: Sequence[str], values: Sequence[tuple[float, float | None] | None], runs: int, digits: int = 2
) -> dict[tuple[str, str], Expected]:
    """A column of (rate, mean stop)."""
    return {
        (at, name): Expected(value[0], runs, digits, value[1])
        for at, value in zip(rows, values, strict=True)
        if value is not None
    }


def outside(rates: Rates, expected: Expectations) -> list[str]:
    """One line for each cell that differs from the design by more than chance."""
    return [
        f"{at[0]} / {at[1]}: {rates[at].text(stop=said.stop is not None)}, the design has {said.text()}"
        for at, said in expected.items()
        if at in rates and not said.agrees(rates[at])
    ]


def markdown(rates: Rates, corner: str, expected: Expectations, *, stops: bool = False) -> str:
    """A Markdown table, rows and columns in the order of their first appearance; an empty cell is `-`.

    Behind each rate stands the design's (`design .047`), bold with ≠ where they differ by more than chance.
    """
    rows = list(dict.fromkeys(row for row, _ in rates))
    columns = list(dict.fromkeys(column for _, column in rates))
    lines = [f"| {corner} | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for at_row in rows:
        cells = [_cell(rates.get((at_row, at)), expected.get((at_row, at)), stops) for at in columns]
        lines.append(f"| {at_row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rate: Rate | None, expected: Expected | None, stops: bool) -> str:
    if rate is None:
        return "-"
    shown = rate.text(stop=stops)
    if expected is None:
        return shown
    return f"{shown} (design {expected.text()})" if expected.agrees(rate) else f"{shown} **≠ design {expected.text()}**"
