"""Charts as SVG, drawn on the server: no script, no outside resource, colours from the page's own style sheet.

Each is an <svg> with a title and a description for those who do not see it. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 40
_CLIP = 1.5
"""Relative effects beyond ±150 % are drawn at the edge: early limits are that wide."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map of values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values inside."""
        values = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(value) for value in values if self.low <= value <= self.high]


def confidence_sequence(points: Sequence[Mapping[str, Any]], title: str, *, increasing: bool = True) -> str:
    """A metric's relative effect over the looks: limits as a band, margin and ramp steps as lines.

    points: of one metric and arm, as `experiment.report.timeseries` gives them; those without limits are left out.
    """
    drawn = [point for point in points if point["effect"] is not None]
    if len(drawn) < 2:
        return _frame(title, "no limits yet", f'<text class="note" x="{LEFT}" y="{HEIGHT / 2}">no limits yet</text>')
    margin = drawn[-1]["margin"]
    line = None if margin is None else (-margin if increasing else margin)
    x = Scale(drawn[0]["look"], drawn[-1]["look"], LEFT, WIDTH - RIGHT)
    y = _effect_scale(drawn, line)
    parts = [_grid(x, y), _steps(drawn, x), _band(drawn, x, y)]
    parts.append(_rule(y, 0.0, "zero", "no difference"))
    if line is not None:
        parts.append(_rule(y, line, "margin", f"margin {100 * line:+g} %"))
    path = " ".join(f"{x(point['look']):.1f},{y(point['effect']):.1f}" for point in drawn)
    parts.append(f'<polyline class="estimate" points="{path}"/>')
    last = drawn[-1]
    limits = f"limits {_percent(last['low'])} to {_percent(last['high'])}"
    meaning = f"after look {last['look']}: {_percent(last['effect'])}, {limits}"
    return _frame(title, meaning, "".join(parts))


def intervals(readings: Sequence[tuple[str, Mapping[str, Any]]], title: str) -> str:
    """One line per arm: its value and its always-valid limits. readings: (arm, Reading as a dict)."""
    known = [(arm, reading) for arm, reading in readings if reading.get("value") is not None]
    if not known:
        return ""
    lows = [reading["low"] if reading["low"] is not None else reading["value"] for _, reading in known]
    highs = [reading["high"] if reading["high"] is not None else reading["value"] for _, reading in known]
    low, high = max(0.0, min(lows)), max(highs)
    if high <= low:
        low, high = high - 0.5, low + 0.5
    x = Scale(low, high, 140, WIDTH - RIGHT - 8)
    height = 34 * len(known) + 34
    parts = []
    for row, ((arm, reading), left, right) in enumerate(zip(known, lows, highs, strict=True)):
        at = 20 + 34 * row
        parts.append(f'<text class="tick" x="8" y="{at + 4}">{escape(arm)}</text>')
        parts.append(f'<line class="interval" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{at}" y2="{at}"/>')
        parts.append(f'<circle class="dot" cx="{x(reading["value"]):.1f}" cy="{at}" r="5"/>')
    parts += [
        f'<text class="tick" text-anchor="middle" x="{x(value):.1f}" y="{height - 8}">{100 * value:.4g} %</text>'
        for value in x.ticks(6)
    ]
    meaning = "; ".join(f"{arm} {100 * reading['value']:.2f} %" for arm, reading in known)
    return _frame(title, meaning, "".join(parts), height)


def _effect_scale(points: Sequence[Mapping[str, Any]], line: float | None) -> Scale:
    """Wide enough for the later half of the run: the first limits are as wide as the world."""
    later = points[len(points) // 3 :]
    values = [0.0, *(point[name] for point in later for name in ("low", "high", "effect") if point[name] is not None)]
    if line is not None:
        values.append(1.2 * line)
    low, high = max(min(values), -_CLIP), min(max(values), _CLIP)
    pad = 0.08 * max(high - low, 0.02)
    return Scale(low - pad, high + pad, HEIGHT - BOTTOM, TOP)


def _band(points: Sequence[Mapping[str, Any]], x: Scale, y: Scale) -> str:
    upper = [(point["look"], y.high if point["high"] is None else point["high"]) for point in points]
    lower = [(point["look"], y.low if point["low"] is None else point["low"]) for point in reversed(points)]
    corners = " ".join(f"{x(look):.1f},{y(value):.1f}" for look, value in [*upper, *lower])
    return f'<polygon class="band" points="{corners}"/>'


def _steps(points: Sequence[Mapping[str, Any]], x: Scale) -> str:
    parts = []
    before = None
    for point in points:
        if point["coverage"] != before:
            at = x(point["look"])
            parts.append(f'<line class="step" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(
                f'<text class="step-label" x="{at + 3:.1f}" y="{TOP + 10}">{100 * point["coverage"]:g} %</text>'
            )
            before = point["coverage"]
    return "".join(parts)


def _grid(x: Scale, y: Scale) -> str:
    parts = [f'<text class="tick" text-anchor="middle" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}">look</text>']
    for value in y.ticks(7):
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{at + 4:.1f}">{100 * value:+.4g} %</text>'
        )
    for value in x.ticks(8):
        if value == int(value):
            at = x(value)
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}">{value:g}</text>'
            )
    return "".join(parts)


def _rule(y: Scale, value: float, kind: str, label: str) -> str:
    at = y(value)
    return (
        f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="{kind}-label" text-anchor="end" x="{WIDTH - RIGHT - 4}" y="{at - 4:.1f}">{escape(label)}</text>'
    )


def _frame(title: str, meaning: str, inside: str, height: float = HEIGHT) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height:g}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title><desc>{escape(meaning)}</desc>{inside}</svg>"
    )


def _percent(value: float | None) -> str:
    return "unbounded" if value is None else f"{100 * value:+.1f} %"
