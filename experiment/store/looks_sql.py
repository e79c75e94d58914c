"""What one look reads: aggregates over users whose window closed by the watermark, from one snapshot."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from experiment.events import Status
from experiment.metrics import COLUMNS, METRICS
from experiment.spec import MetricSpec
from experiment.state import ArmAggregate, ExperimentRow, LookInput
from experiment.store import schema
from experiment.store.schema import micros, moment
from stats.moments import Moments

LOST_AFTER = timedelta(minutes=15)
"""A writer silent for this long no longer holds the watermark back; what it still holds will count as late."""

_TOTALS = schema.user_totals.c


def read_look(connection: sa.Connection, row: ExperimentRow, at: datetime) -> LookInput:
    """Everything of `LookInput`; overridden users were never folded, so they are not here."""
    watermark = _watermark(connection, at)
    closed = micros(watermark) if watermark is not None else -1
    mine = (_TOTALS.experiment == row.key) & (_TOTALS.run == row.run)
    exposed = {arm.arm: [0] * len(row.spec.ramp.steps) for arm in row.spec.arms}
    totals = {arm.arm: dict.fromkeys(COLUMNS, 0.0) for arm in row.spec.arms}
    columns = [sa.func.sum(sa.cast(_TOTALS[name], sa.Double)).label(name) for name in COLUMNS]
    query = sa.select(_TOTALS.arm, _TOTALS.phase, sa.func.count().label("users"), *columns).where(mine)
    for found in connection.execute(query.group_by(_TOTALS.arm, _TOTALS.phase)):
        if found.arm in exposed:
            exposed[found.arm][found.phase] += found.users
            for name in COLUMNS:
                totals[found.arm][name] += getattr(found, name)
    closed_users = mine & (_TOTALS.closes_at <= closed)
    moments = _moments(connection, row, closed_users)
    triggered, rest = (
        _moments(connection, row, closed_users & (_TOTALS.triggered == flag)) if row.spec.shadow else {}
        for flag in (1, 0)
    )
    arms = {
        arm: ArmAggregate(
            arm, tuple(exposed[arm]), *moments[arm], totals[arm], *(part[arm][1] for part in (triggered, rest) if part)
        )
        for arm in exposed
    }
    orphans, late = (_events_in(connection, status) for status in (Status.PENDING, Status.LATE))
    return LookInput(row, arms, watermark, orphans, late)


def _events_in(connection: sa.Connection, status: Status) -> int:
    """How many interactions are in this rare status; a literal, so that the partial index serves."""
    rare: sa.ColumnElement[str] = sa.literal_column(f"'{status.value}'")
    query = sa.select(sa.func.count()).select_from(schema.interactions).where(schema.interactions.c.status == rare)
    return connection.scalar(query) or 0


def _watermark(connection: sa.Connection, at: datetime) -> datetime | None:
    """The time up to which every live writer has stored everything that it accepted."""
    flushed = schema.writers.c.flushed_through
    query = sa.select(sa.func.min(flushed)).where(flushed >= micros(at - LOST_AFTER))
    return moment(connection.scalar(query))


def _moments(
    connection: sa.Connection, row: ExperimentRow, closed: sa.ColumnElement[bool]
) -> dict[str, tuple[int, dict[str, Moments]]]:
    """arm -> (users, metric -> moments), with one scan."""
    columns: list[sa.ColumnElement[Any]] = []
    for metric in row.spec.metrics:
        x, y = _values(metric)
        columns += [sa.func.sum(product) for product in (x, y, x * x, y * y, x * y)]
    query = sa.select(_TOTALS.arm, sa.func.count(), *columns).where(closed).group_by(_TOTALS.arm)
    empty = {metric.name: Moments.empty() for metric in row.spec.metrics}
    found: dict[str, tuple[int, dict[str, Moments]]] = {arm.arm: (0, dict(empty)) for arm in row.spec.arms}
    for arm, users, *sums in connection.execute(query):
        if arm in found:
            parts = (sums[i * 5 : i * 5 + 5] for i in range(len(row.spec.metrics)))
            named = zip(row.spec.metrics, parts, strict=True)
            found[arm] = users, {metric.name: Moments.from_sums(users, *part) for metric, part in named}
    return found


def _values(metric: MetricSpec) -> tuple[sa.ColumnElement[float], sa.ColumnElement[float]]:
    """A user's numerator, capped, and denominator, both as doubles."""
    known = METRICS[metric.name]
    x: sa.ColumnElement[float] = sa.cast(_TOTALS[known.numerator[0]], sa.Double)
    for name in known.numerator[1:]:
        x = x + sa.cast(_TOTALS[name], sa.Double)
    if metric.cap is not None:
        cap = sa.cast(sa.literal(metric.cap), sa.Double)
        x = sa.case((x > cap, cap), else_=x)
    y = sa.cast(sa.literal(1.0) if known.denominator is None else _TOTALS[known.denominator], sa.Double)
    return x, y
