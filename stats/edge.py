"""The edge of what is not rejected: where a search that starts at an estimate first meets a rejected hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable

_GROWTH = 1.2
_STEPS = 120
_PRECISION = 1e-11  # of the last step; convergence is faster than linear, so the edge is good to rounding


def edge(excess: Callable[[float], float], centre: float, reach: float) -> float:
    """The first q from the centre, in the direction of `reach`, at which `excess` rises above 0; infinite if none does.

    excess: at most 0 at the centre, -inf allowed. reach: signed, about how far away the edge is; the better the guess,
    the fewer calls. Steps of half of it, growing, find a pair around the edge, which `_between` closes.
    """
    inner, below, step = centre, -math.inf, 0.5 * reach
    for _ in range(_STEPS):
        outer = inner + step
        above = excess(outer)
        if above > 0:
            return _between(excess, (inner, below), (outer, above))
        inner, below, step = outer, above, step * _GROWTH
    return math.copysign(math.inf, reach)


def _between(excess: Callable[[float], float], inside: tuple[float, float], outside: tuple[float, float]) -> float:
    """The root between two (q, excess), <= 0 inside and > 0 outside: regula falsi, a kept end's value scaled down.

    Source: Anderson & Björck 1973, A new high order method of regula falsi type for computing a root of an equation.
    """
    (inner, below), (outer, above) = inside, outside
    kept, last = "", outer
    for _ in range(_STEPS):
        below = -above if below == -math.inf else below  # halves: infinity does not say how far the root is
        q = outer - above * (outer - inner) / (above - below)
        value = excess(q)
        if value == 0 or abs(q - last) <= _PRECISION * abs(q):
            return q
        if value > 0:
            below *= _shrink(value, above) if kept == "inner" else 1.0
            outer, above, kept = q, value, "inner"
        else:
            above *= _shrink(value, below) if kept == "outer" else 1.0
            inner, below, kept = q, value, "outer"
        last = q
    return outer


def _shrink(value: float, before: float) -> float:
    """What the kept end's value is multiplied by when the other end has moved twice in a row."""
    factor = 1 - value / before
    return factor if factor > 0 else 0.5
