"""From how many rows on an FP8 product is faster than a 16-bit one, as measured on a device."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quant.errors import QuantError

_ASSUMED_PRODUCT = 2**31
"""Multiply-adds from which FP8 is assumed to be faster where nothing was measured: on one H200, 512 · 1408 · 1408 took
7.6 us in FP8 and 6.5 in 16 bit, 512 · 1408 · 4224 took 8.5 and 10.6."""


@dataclass(frozen=True, slots=True, order=True)
class Timing:
    """One product rows [rows, inner] · [outer, inner]ᵀ, timed in both formats, microseconds."""

    rows: int
    inner: int
    outer: int
    fp8_us: float
    bf16_us: float

    def __post_init__(self) -> None:
        if min(self.rows, self.inner, self.outer) < 1 or not (self.fp8_us > 0.0 and self.bf16_us > 0.0):
            raise QuantError(f"crossover: not a timing: {self!r}")


@dataclass(frozen=True, slots=True)
class Crossover:
    """What was measured on one device; the rule by which the engine chooses a format for each product."""

    timings: tuple[Timing, ...] = ()

    def takes_eight(self, rows: int, inner: int, outer: int) -> bool:
        """Whether the FP8 product of this size is no slower than the 16-bit one.

        Decided by the measured row count at or next below `rows`, else the smallest one; without any measurement of
        the matrix by the number of multiply-adds.
        """
        known = sorted(timing for timing in self.timings if (timing.inner, timing.outer) == (inner, outer))
        if not known:
            return rows * inner * outer >= _ASSUMED_PRODUCT
        below = [timing for timing in known if timing.rows <= rows]
        nearest = below[-1] if below else known[0]
        return nearest.fp8_us <= nearest.bf16_us

    def missing(self, rows: Iterable[int], shapes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
        """Which (rows, inner, outer) are yet to be measured, each once."""
        have = {(timing.rows, timing.inner, timing.outer) for timing in self.timings}
        wanted = {(count, *shape) for shape in shapes for count in rows}
        return tuple(sorted(wanted - have))

    def with_timings(self, timings: Iterable[Timing]) -> Crossover:
        """These, too; a new timing replaces an old one of its size."""
        merged = {(timing.rows, timing.inner, timing.outer): timing for timing in (*self.timings, *timings)}
        return Crossover(tuple(sorted(merged.values())))


def load_crossover(path: Path, device: str) -> Crossover:
    """What the file holds for this device, see `save_crossover`; nothing where there is no such file.

    Raises QuantError naming the file when it is not one of ours: a wrong rule would slow every answer silently.
    """
    timings = _content(path).get(device, [])
    try:
        return Crossover(tuple(Timing(**timing) for timing in timings))
    except TypeError as error:
        raise QuantError(f"{path}: not a file of timings: {error}") from error


def save_crossover(path: Path, device: str, crossover: Crossover) -> None:
    """Write it under the device's name, beside what other devices measured, and in place of an older file."""
    content = _content(path) | {device: [asdict(timing) for timing in crossover.timings]}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _content(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise QuantError(f"{path}: not a file of timings: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(timings, list) for timings in raw.values()):
        raise QuantError(f"{path}: not a file of timings")
    return raw
