"""Fold a stream of events into per-user totals and, in place of any rebuild, into the arm's moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stats.errors import StatsError
from stats.moments import Moments, dot

Floats = NDArray[np.float64]
Users = NDArray[np.int64]


class Fold:
    """One arm's running totals; `moments` is always what a rebuild from these totals would give, to rounding.

    Users are dense indices from 0. A user counts from the first event on. Cost: O(events of the batch), whatever the
    history. Mutable, for one thread.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.moments = Moments.empty()
        self._x = np.zeros(capacity)
        self._y = np.zeros(capacity)
        self._known = np.zeros(capacity, dtype=np.bool_)
        self._last = np.zeros(capacity, dtype=np.int64)

    def add(self, users: Users, x: Floats, y: Floats) -> Moments:
        """Add a batch of events, arrays of one shape: the user's index, and what the event adds to x and to y.

        A user may occur many times. Returns the moments after the batch. Raises StatsError on arrays that differ in
        length, negative indices or values that are not finite; nothing is folded then.
        """
        if not users.shape == x.shape == y.shape or users.ndim != 1:
            raise StatsError("users", f"shapes {users.shape}, {x.shape} and {y.shape} must be one and the same")
        if users.size == 0:
            return self.moments
        if users.min() < 0:
            raise StatsError("users", "a user's index cannot be negative")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise StatsError("x", "every event's value must be finite")
        self._reserve(int(users.max()) + 1)
        order = np.arange(users.size)
        self._last[users] = order  # each user's last event in the batch stands for the user
        touched = users[self._last[users] == order]
        old_x, old_y, known = self._x[touched], self._y[touched], self._known[touched]
        np.add.at(self._x, users, x)
        np.add.at(self._y, users, y)
        self._known[touched] = True
        self.moments = _replaced(self.moments, (old_x, old_y), (self._x[touched], self._y[touched]), known)
        return self.moments

    def _reserve(self, users: int) -> None:
        if users <= self._x.size:
            return
        extra = max(users, 2 * self._x.size) - self._x.size
        self._x, self._y = np.pad(self._x, (0, extra)), np.pad(self._y, (0, extra))
        self._known, self._last = np.pad(self._known, (0, extra)), np.pad(self._last, (0, extra))


def rebuild(users: Users, x: Floats, y: Floats | None = None) -> Moments:
    """Moments of all events at once, from cold: x and y (None: every event counts 1) summed over each user."""
    return _moments(*_totals(users, x, y))


def rebuild_arms(users: Users, arms: Users, x: Floats, y: Floats | None = None) -> list[Moments]:
    """`rebuild` of every arm in one pass, one entry for each arm up to the highest; a user of two arms counts in both.

    arms: shape of users, each event's arm as an index from 0. Raises StatsError on other shapes and negative indices.
    """
    if not users.shape == arms.shape == x.shape or users.ndim != 1:
        raise StatsError("arms", f"shapes {users.shape}, {arms.shape} and {x.shape} must be one and the same")
    if users.size == 0:
        return []
    for name, indices in (("users", users), ("arms", arms)):
        if indices.min() < 0:
            raise StatsError(name, "an index cannot be negative")
    count = int(arms.max()) + 1
    per_x, per_y, present = _totals(users * count + arms, x, y)
    return [_moments(per_x[arm::count], per_y[arm::count], present[arm::count]) for arm in range(count)]


def _totals(units: Users, x: Floats, y: Floats | None) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(Σx, Σy, whether it has an event) of every unit."""
    events = np.bincount(units)
    per_y = events if y is None else np.bincount(units, weights=y)
    return (
        np.bincount(units, weights=x).astype(np.float64, copy=False),
        per_y.astype(np.float64, copy=False),
        events > 0,
    )


def _moments(per_x: Floats, per_y: Floats, present: NDArray[np.bool_]) -> Moments:
    return Moments.from_values(per_x[present], per_y[present])


def _replaced(m: Moments, old: tuple[Floats, Floats], new: tuple[Floats, Floats], known: NDArray[np.bool_]) -> Moments:
    """`Moments.replace_user` for many users at once, given as (x, y); where `known` is False the user is new."""
    (old_x, old_y), (x, y) = old, new
    n = m.n + int(np.count_nonzero(~known))
    ox, oy = np.where(known, old_x - m.mean_x, 0.0), np.where(known, old_y - m.mean_y, 0.0)
    nx, ny = x - m.mean_x, y - m.mean_y
    dx, dy = float((nx - ox).sum()) / n, float((ny - oy).sum()) / n
    return Moments(
        n,
        m.sx + float((x - np.where(known, old_x, 0.0)).sum()),
        m.sy + float((y - np.where(known, old_y, 0.0)).sum()),
        m.sc,
        max(m.m_xx + (dot(nx, nx) - dot(ox, ox) - n * dx * dx), 0.0),
        max(m.m_yy + (dot(ny, ny) - dot(oy, oy) - n * dy * dy), 0.0),
        m.m_xy + (dot(nx, ny) - dot(ox, oy) - n * dx * dy),
        m.m_cc,
        m.m_xc,
        m.m_yc,
    )
