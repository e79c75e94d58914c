"""How often something happened in a simulation, and how sure that number is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Rate:
    """hits out of runs; `stops` sums, over all runs, where each stopped (as a share of the planned end)."""

    hits: int
    runs: int
    stops: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.hits + other.hits, self.runs + other.runs, self.stops + other.stops)

    @property
    def value(self) -> float:
        return self.hits / self.runs

    @property
    def mean_stop(self) -> float:
        return self.stops / self.runs

    def interval(self, z: float = Z95) -> tuple[float, float]:
        """Wilson's interval."""
        n, p, z2 = self.runs, self.value, z * z
        centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)

    def text(self, *, stop: bool = False) -> str:
        """`.047 [.044, .050]`, with ` / .78` for the mean stop."""
        low, high = self.interval()
        shown = f"{_short(self.value)} [{_short(low)}, {_short(high)}]"
        return f"{shown} / {self.mean_stop:.2f}" if stop else shown


Rates = Mapping[tuple[str, str], Rate]
"""(row, column) of a table -> its rate."""


def merged(parts: Iterable[Rates]) -> dict[tuple[str, str], Rate]:
    """Add up the rates of several batches of runs."""
    total: dict[tuple[str, str], Rate] = {}
    for part in parts:
        for cell, rate in part.items():
            total[cell] = total[cell] + rate if cell in total else rate
    return total


def _short(share: float) -> str:
    text = f"{min(1.0, max(0.0, share)):.3f}"
    return text[1:] if text.startswith("0") else text
