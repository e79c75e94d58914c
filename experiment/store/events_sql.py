"""The event log in SQL: stored once, attributed once, folded into one row a user, in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa

from experiment.events import Interaction, Kind, Record, Served, Status
from experiment.fold import UserFold, fold_user
from experiment.metrics import COLUMNS
from experiment.ports import Ingested
from experiment.store import schema
from experiment.store.engine import reading, writing
from experiment.store.schema import micros, moment
from experiment.store.writes import add_to_counter, insert_new, upsert

_CHUNK = 500
"""Values in one IN list; well under every driver's limit of parameters."""

_WRITER_LOCK = 0x63726F73
"""One folding transaction at a time: two that see half of a user each would both be wrong. SQLite does so by itself."""

UserKey = tuple[str, int, str]
"""(experiment, run, user id)."""


class SqlEventLog:
    """`EventLog` on SQLite or PostgreSQL."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def append(self, records: Sequence[Record]) -> Ingested:
        """See `EventLog.append`."""
        answered = {record.request_id: record for record in records if isinstance(record, Served)}
        events = {record.event_id: record for record in records if isinstance(record, Interaction)}
        with writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
            new_served = insert_new(connection, schema.served, [_served_row(record) for record in answered.values()])
            new_events = insert_new(connection, schema.interactions, [_event_row(event) for event in events.values()])
            requests = {*new_served, *(events[event_id].request_id for event_id in new_events)}
            _attribute(connection, requests)
            fresh = len(new_served) + len(new_events)
            duplicates = len(records) - fresh
            if duplicates:
                add_to_counter(connection, "duplicates", duplicates)
        return Ingested(fresh, duplicates)

    def heartbeat(self, writer: str, flushed_through: datetime) -> None:
        """See `EventLog.heartbeat`."""
        row = {"name": writer, "flushed_through": micros(flushed_through)}
        with writing(self._engine) as connection:
            upsert(connection, schema.writers, [row], ["name"])

    def retire(self, writer: str) -> None:
        """See `EventLog.retire`."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(schema.writers).where(schema.writers.c.name == writer))

    def counts(self) -> Mapping[str, int]:
        """See `EventLog.counts`."""
        events = schema.interactions
        with reading(self._engine) as connection:
            found = {"served": connection.scalar(sa.select(sa.func.count()).select_from(schema.served)) or 0}
            for column, names in ((events.c.kind, Kind), (events.c.status, Status)):
                rows = connection.execute(sa.select(column, sa.func.count()).group_by(column)).all()
                by_name = dict(cast("Iterable[tuple[str, int]]", rows))
                found |= {name.value: by_name.get(name.value, 0) for name in names}
            query = sa.select(schema.counters.c.value).where(schema.counters.c.name == "duplicates")
            found["duplicates"] = connection.scalar(query) or 0
        return found


def _attribute(connection: sa.Connection, requests: set[str]) -> None:
    """Fold every user behind these requests anew, and settle the requests of users who take no part."""
    users: dict[UserKey, int] = {}
    outside: list[str] = []
    served, experiments = schema.served, schema.experiments
    query = sa.select(
        served.c.request_id, served.c.experiment, served.c.run, served.c.user_id, served.c.forced,
        experiments.c.exposure_window_us,
    ).select_from(served.outerjoin(experiments, experiments.c.key == served.c.experiment))  # fmt: skip
    for row in _where_in(connection, query, served.c.request_id, requests):
        if row.exposure_window_us is None or row.forced:
            outside.append(row.request_id)
        else:
            users[row.experiment, row.run, row.user_id] = row.exposure_window_us
    _set_status(connection, outside, Status.UNENROLLED)
    if users:
        _fold(connection, users)


def _fold(connection: sa.Connection, users: Mapping[UserKey, int]) -> None:
    closed = _closed_users(connection, users)
    answered: dict[UserKey, list[Served]] = defaultdict(list)
    owner: dict[str, UserKey] = {}
    served = schema.served
    for row in _where_in(connection, sa.select(served), served.c.user_id, {user for _, _, user in users}):
        key = (row.experiment, row.run, row.user_id)
        if key in users and not row.forced:
            answered[key].append(_served(row))
            owner[row.request_id] = key
    events: dict[UserKey, list[Interaction]] = defaultdict(list)
    before: dict[str, str] = {}
    query = sa.select(schema.interactions)
    for row in _where_in(connection, query, schema.interactions.c.request_id, set(owner)):
        events[owner[row.request_id]].append(_interaction(row))
        before[row.event_id] = row.status
    totals: list[dict[str, Any]] = []
    statuses: dict[str, Status] = {}
    for key, window_us in users.items():
        if key in closed:
            waiting = [event.event_id for event in events[key] if before[event.event_id] == Status.PENDING]
            statuses |= dict.fromkeys(waiting, Status.LATE)
            continue
        fold = fold_user(answered[key], events[key], timedelta(microseconds=window_us))
        totals.append(_totals_row(key, fold))
        statuses |= fold.statuses
    if totals:
        upsert(connection, schema.user_totals, totals, ["experiment", "run", "user_id"])
    changed = [{"id": event, "to": status.value} for event, status in statuses.items() if before[event] != status]
    if changed:
        table = schema.interactions
        statement = sa.update(table).where(table.c.event_id == sa.bindparam("id")).values(status=sa.bindparam("to"))
        connection.execute(statement, changed)


def _closed_users(connection: sa.Connection, users: Mapping[UserKey, int]) -> set[UserKey]:
    """Users whose window a look has read as closed: they never change again."""
    totals, experiments = schema.user_totals, schema.experiments
    query = (
        sa.select(totals.c.experiment, totals.c.run, totals.c.user_id)
        .join(experiments, (experiments.c.key == totals.c.experiment) & (experiments.c.run == totals.c.run))
        .where(totals.c.closes_at <= experiments.c.watermark)
    )
    rows = _where_in(connection, query, totals.c.user_id, {user for _, _, user in users})
    return {(row.experiment, row.run, row.user_id) for row in rows}


def _where_in(
    connection: sa.Connection, query: sa.Select[Any], column: sa.ColumnElement[Any], values: set[str]
) -> Iterable[Any]:
    ordered = sorted(values)
    for start in range(0, len(ordered), _CHUNK):
        yield from connection.execute(query.where(column.in_(ordered[start : start + _CHUNK])))


def _set_status(connection: sa.Connection, requests: Sequence[str], status: Status) -> None:
    table = schema.interactions
    for start in range(0, len(requests), _CHUNK):
        chosen = table.c.request_id.in_(requests[start : start + _CHUNK])
        connection.execute(sa.update(table).where(chosen).values(status=status.value))


def _totals_row(key: UserKey, fold: UserFold) -> dict[str, Any]:
    experiment, run, user = key
    row = {"experiment": experiment, "run": run, "user_id": user, "arm": fold.arm, "phase": fold.phase}
    row |= {"exposed_at": micros(fold.exposed_at), "closes_at": micros(fold.closes_at)}
    return row | {name: fold.totals[name] for name in COLUMNS}


def _served_row(record: Served) -> dict[str, Any]:
    return {**asdict(record), "received_at": micros(record.received_at)}


def _event_row(event: Interaction) -> dict[str, Any]:
    times = {"occurred_at": micros(event.occurred_at), "received_at": micros(event.received_at)}
    return {**asdict(event), **times, "kind": event.kind.value, "status": Status.PENDING.value}


def _served(row: Any) -> Served:
    return Served(**{**row._mapping, "received_at": moment(row.received_at)})


def _interaction(row: Any) -> Interaction:
    fields = {name: value for name, value in row._mapping.items() if name != "status"}
    times = {"occurred_at": moment(row.occurred_at), "received_at": moment(row.received_at)}
    return Interaction(**{**fields, **times, "kind": Kind(row.kind)})
