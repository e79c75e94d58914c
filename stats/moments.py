"""Sufficient statistics of one arm: sums and centred co-moments of per-user values.

The unit is the user. Each user contributes one triple: a numerator x (clicks, seconds), a denominator y (impressions;
1 for a plain mean) and a covariate c measured before exposure (0 where there is none).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stats.errors import StatsError

UserValue = tuple[float, float, float]
"""One user's (x, y, c)."""

_SPLITTER = 134217729.0  # 2**27 + 1: cuts a double into two halves whose products are exact
_ROUNDING = 1e-9  # a relative shortfall of a sum of squares that rounding can explain


@dataclass(frozen=True, slots=True)
class Moments:
    """n users, the sums of x, y and c, and the sums of centred products (m_xy = Σ (x - mean_x)(y - mean_y)).

    Sums of counts stay exact under any number of updates, and products are kept centred, so that nothing cancels
    however large the means are. `a + b` merges disjoint sets of users (Chan, Golub & LeVeque 1979); it is commutative
    exactly and associative up to rounding.
    """

    n: int
    sx: float
    sy: float
    sc: float
    m_xx: float
    m_yy: float
    m_xy: float
    m_cc: float
    m_xc: float
    m_yc: float

    def __post_init__(self) -> None:
        if self.n < 0:
            raise StatsError("n", f"a number of users cannot be negative, got {self.n}")
        total = self.sx + self.sy + self.sc + self.m_xx + self.m_yy + self.m_xy
        if not math.isfinite(total + self.m_cc + self.m_xc + self.m_yc):
            raise StatsError("moments", "a moment is not finite; values must be finite and below 1e150")
        if self.m_xx < 0 or self.m_yy < 0 or self.m_cc < 0:
            raise StatsError("moments", "a centred sum of squares cannot be negative")

    @property
    def mean_x(self) -> float:
        """Mean numerator per user; 0 without users."""
        return self.sx / self.n if self.n else 0.0

    @property
    def mean_y(self) -> float:
        """Mean denominator per user; 0 without users."""
        return self.sy / self.n if self.n else 0.0

    @property
    def mean_c(self) -> float:
        """Mean covariate per user; 0 without users."""
        return self.sc / self.n if self.n else 0.0

    @classmethod
    def empty(cls) -> Self:
        """No users yet: the neutral element of `+`."""
        return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def from_values(cls, x: ArrayLike, y: ArrayLike | None = None, c: ArrayLike | None = None) -> Self:
        """From raw arrays of shape (users,); y None means 1 for everybody, c None means no covariate.

        Raises StatsError on arrays that are not one-dimensional, differ in length or hold a non-finite value.
        """
        xs = _column("x", x)
        n = xs.size
        ys = np.ones(n) if y is None else _column("y", y, n)
        cs = np.zeros(n) if c is None else _column("c", c, n)
        if n == 0:
            return cls.empty()
        sx, sy, sc = float(xs.sum()), float(ys.sum()), float(cs.sum())
        xs, ys, cs = xs - sx / n, ys - sy / n, cs - sc / n
        return cls(
            n, sx, sy, sc,
            dot(xs, xs), dot(ys, ys), dot(xs, ys), dot(cs, cs), dot(xs, cs), dot(ys, cs),
        )  # fmt: skip

    @classmethod
    def from_sums(
        cls,
        n: int,
        sx: float,
        sy: float,
        sxx: float,
        syy: float,
        sxy: float,
        sc: float = 0.0,
        scc: float = 0.0,
        sxc: float = 0.0,
        syc: float = 0.0,
    ) -> Self:
        """From raw sums over users, as a SQL aggregate gives them (for a mean: sy = syy = n and sxy = sx).

        The centring is exact up to one rounding, so integer counts below 2**53 lose nothing; sums that were rounded
        themselves have lost what they have lost. Raises StatsError when a sum of squares is impossibly small.
        """
        if n <= 0:
            if n < 0 or any((sx, sy, sxx, syy, sxy, sc, scc, sxc, syc)):
                raise StatsError("n", f"{n} users cannot have these sums")
            return cls.empty()
        return cls(
            n, sx, sy, sc,
            _centred_square("sxx", n, sxx, sx), _centred_square("syy", n, syy, sy), _centred(n, sxy, sx, sy),
            _centred_square("scc", n, scc, sc), _centred(n, sxc, sx, sc), _centred(n, syc, sy, sc),
        )  # fmt: skip

    def __add__(self, other: Moments) -> Moments:
        if self.n == 0:
            return other
        if other.n == 0:
            return self
        a, b, n = self.n, other.n, self.n + other.n
        dx, dy, dc = other.mean_x - self.mean_x, other.mean_y - self.mean_y, other.mean_c - self.mean_c
        w = a * b / n
        return Moments(
            n,
            self.sx + other.sx,
            self.sy + other.sy,
            self.sc + other.sc,
            self.m_xx + other.m_xx + w * dx * dx,
            self.m_yy + other.m_yy + w * dy * dy,
            self.m_xy + other.m_xy + w * dx * dy,
            self.m_cc + other.m_cc + w * dc * dc,
            self.m_xc + other.m_xc + w * dx * dc,
            self.m_yc + other.m_yc + w * dy * dc,
        )

    def replace_user(self, old: UserValue | None, new: UserValue | None) -> Moments:
        """Change one user's values in place of a rebuild: old None enrols a user, new None forgets one.

        Raises StatsError when `old` is taken from an empty arm, and when what is left is impossible (the user's old
        values were not in these moments).
        """
        n = self.n + (new is not None) - (old is not None)
        if n < 0:
            raise StatsError("old", "no user to replace: the arm is empty")
        if n == 0:
            return Moments.empty()
        # Products about the old means first, then one shift of the origin to the new means.
        ox, oy, oc = self._offset(old)
        nx, ny, nc = self._offset(new)
        dx, dy, dc = (nx - ox) / n, (ny - oy) / n, (nc - oc) / n
        leaving, entering = old or (0.0, 0.0, 0.0), new or (0.0, 0.0, 0.0)
        return Moments(
            n,
            self.sx - leaving[0] + entering[0],
            self.sy - leaving[1] + entering[1],
            self.sc - leaving[2] + entering[2],
            _square_left("x", self.m_xx, nx * nx - ox * ox - n * dx * dx, self.m_xx + nx * nx),
            _square_left("y", self.m_yy, ny * ny - oy * oy - n * dy * dy, self.m_yy + ny * ny),
            self.m_xy + (nx * ny - ox * oy - n * dx * dy),
            _square_left("c", self.m_cc, nc * nc - oc * oc - n * dc * dc, self.m_cc + nc * nc),
            self.m_xc + (nx * nc - ox * oc - n * dx * dc),
            self.m_yc + (ny * nc - oy * oc - n * dy * dc),
        )

    def _offset(self, value: UserValue | None) -> UserValue:
        if value is None:
            return 0.0, 0.0, 0.0
        x, y, c = value
        return x - self.mean_x, y - self.mean_y, c - self.mean_c

    def to_dict(self) -> dict[str, float]:
        """JSON-ready; floats survive the round trip bit for bit."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises StatsError naming the missing or unknown key."""
        names = [field.name for field in fields(cls)]
        if wrong := set(names).symmetric_difference(values):
            raise StatsError(sorted(wrong)[0], f"moments have exactly the keys {', '.join(names)}")
        return cls(int(values["n"]), *(float(values[name]) for name in names[1:]))


def dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Σ a b, summed pairwise: unlike BLAS's, the same to the bit on any number of cores, and it waits for no thread."""
    return float((a * b).sum())


def _column(name: str, values: ArrayLike, n: int | None = None) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise StatsError(name, f"expected one value a user, got an array of shape {column.shape}")
    if n is not None and column.size != n:
        raise StatsError(name, f"{column.size} values for {n} users")
    if not np.isfinite(column).all():
        raise StatsError(name, "every user's value must be finite")
    return column


def _square_left(name: str, before: float, change: float, scale: float) -> float:
    left = before + change
    if left < -_ROUNDING * scale:
        raise StatsError("old", f"the user's old {name} was never in these moments")
    return max(left, 0.0)


def _centred_square(name: str, n: int, square: float, total: float) -> float:
    centred = _centred(n, square, total, total)
    if centred < -_ROUNDING * abs(square):
        raise StatsError(name, f"{square} is less than the square of its sum over n = {n}")
    return max(centred, 0.0)


def _centred(n: int, product: float, total_a: float, total_b: float) -> float:
    """product - total_a total_b / n as (n product - total_a total_b) / n, both products kept to twice the precision."""
    left, left_error = _two_product(float(n), float(product))
    right, right_error = _two_product(float(total_a), float(total_b))
    return ((left - right) + (left_error - right_error)) / n


def _two_product(a: float, b: float) -> tuple[float, float]:
    """a b as (rounded product, rounding error); exact away from overflow (Dekker 1971)."""
    product = a * b
    a_high = a * _SPLITTER
    a_high -= a_high - a
    b_high = b * _SPLITTER
    b_high -= b_high - b
    a_low, b_low = a - a_high, b - b_high
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
