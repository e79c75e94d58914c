"""The event log in SQL: stored once, attributed once, folded into one row a user, in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa

from experiment.events import Interaction, Kind, Record, Served, Status, columns
from experiment.fold import UserFold, settle
from experiment.metrics import COLUMNS
from experiment.ports import Ingested
from experiment.store import schema, slate_columns
from experiment.store.engine import reading, writing
from experiment.store.schema import micros, moment
from experiment.store.storable import storable
from experiment.store.writes import add_to_counter, insert_new, upsert

_CHUNK = 500
"""Values in one IN list; well under every driver's limit of parameters."""

_WRITER_LOCK = 0x63726F73
"""One folding transaction at a time: two that see half of a user each would both be wrong. SQLite does so by itself."""


@dataclass(frozen=True, slots=True)
class _Run:
    """The users of one run that an append touches. watermark: None unless it is the experiment's current run."""

    window: timedelta
    watermark: datetime | None
    users: set[str]


class SqlEventLog:
    """`EventLog` on SQLite or PostgreSQL."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def append(self, records: Sequence[Record]) -> Ingested:
        """See `EventLog.append`."""
        answered: dict[str, Served] = {}
        events: dict[str, Interaction] = {}
        for record in map(storable, records):
            if isinstance(record, Served):
                answered.setdefault(record.request_id, record)
            else:
                events.setdefault(record.event_id, record)
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
    runs: dict[tuple[str, int], _Run] = {}
    outside: list[str] = []
    served, experiments = schema.served, schema.experiments
    query = sa.select(
        served.c.request_id, served.c.experiment, served.c.run, served.c.user_id, served.c.forced,
        experiments.c.exposure_window_us, experiments.c.run.label("current"), experiments.c.watermark,
    ).select_from(served.outerjoin(experiments, experiments.c.key == served.c.experiment))  # fmt: skip
    for row in _where_in(connection, query, served.c.request_id, requests):
        if row.exposure_window_us is None or row.run is None or row.forced:
            outside.append(row.request_id)
        else:
            window = timedelta(microseconds=row.exposure_window_us)
            watermark = moment(row.watermark) if row.run == row.current else None
            runs.setdefault((row.experiment, row.run), _Run(window, watermark, set())).users.add(row.user_id)
    _set_status(connection, outside, Status.UNENROLLED)
    for (experiment, run), about in runs.items():
        _fold(connection, experiment, run, about)


def _fold(connection: sa.Connection, experiment: str, run: int, about: _Run) -> None:
    answered, owner = _served_to(connection, experiment, run, about.users)
    events: dict[str, list[Interaction]] = defaultdict(list)
    before: dict[str, Status] = {}
    query = sa.select(schema.interactions)
    for row in _where_in(connection, query, schema.interactions.c.request_id, set(owner)):
        events[owner[row.request_id]].append(interaction_of(row))
        before[row.event_id] = Status(row.status)
    closes_at = _closing_times(connection, experiment, run, about.users)
    totals: list[dict[str, Any]] = []
    changed: list[dict[str, str]] = []
    for user, served in answered.items():
        mine = events[user]
        fold, statuses = settle(served, mine, before, about.window, about.watermark, closes_at.get(user))
        if fold is not None:
            totals.append({"experiment": experiment, "run": run, "user_id": user, **_totals_row(fold)})
        changed += [{"id": event, "to": to.value} for event, to in statuses.items() if before[event] is not to]
    if totals:
        upsert(connection, schema.user_totals, totals, ["experiment", "run", "user_id"])
    if changed:
        table = schema.interactions
        statement = sa.update(table).where(table.c.event_id == sa.bindparam("id")).values(status=sa.bindparam("to"))
        connection.execute(statement, changed)


def _served_to(
    connection: sa.Connection, experiment: str, run: int, users: set[str]
) -> tuple[dict[str, list[Served]], dict[str, str]]:
    """user -> their analysed requests of this run, and request -> user."""
    table = schema.served
    answered: dict[str, list[Served]] = defaultdict(list)
    owner: dict[str, str] = {}
    narrow = [column for column in table.c if column.name not in slate_columns.READ]
    of_run = sa.select(*narrow).where(table.c.experiment == experiment, table.c.run == run)
    for row in _where_in(connection, of_run, table.c.user_id, users):
        if not row.forced:
            answered[row.user_id].append(served_of(row))
            owner[row.request_id] = row.user_id
    return answered, owner


def _closing_times(connection: sa.Connection, experiment: str, run: int, users: set[str]) -> dict[str, datetime | None]:
    """user -> the end of the exposure window in the row of totals that exists."""
    table = schema.user_totals
    query = sa.select(table.c.user_id, table.c.closes_at).where(table.c.experiment == experiment, table.c.run == run)
    return {row.user_id: moment(row.closes_at) for row in _where_in(connection, query, table.c.user_id, users)}


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


def _totals_row(fold: UserFold) -> dict[str, Any]:
    times = {"exposed_at": micros(fold.exposed_at), "closes_at": micros(fold.closes_at)}
    triggered = None if fold.triggered is None else int(fold.triggered)
    about = {"arm": fold.arm, "phase": fold.phase, "triggered": triggered, **times}
    return about | {name: fold.totals[name] for name in COLUMNS}


def _served_row(record: Served) -> dict[str, Any]:
    return {**columns(record), **slate_columns.to_columns(record), "received_at": micros(record.received_at)}


def _event_row(event: Interaction) -> dict[str, Any]:
    times = {"occurred_at": micros(event.occurred_at), "received_at": micros(event.received_at)}
    return {**columns(event), **times, "kind": event.kind.value, "status": Status.PENDING.value}


def served_of(row: Any) -> Served:
    """A row of `served`; what is kept for post-training is empty unless it was selected."""
    fields = {**row._mapping, "received_at": moment(row.received_at)}
    for name, read in slate_columns.READ.items():
        if name in fields:
            fields[name] = read(fields[name])
    return Served(**fields)


def interaction_of(row: Any) -> Interaction:
    """A row of `interactions`."""
    fields = {name: value for name, value in row._mapping.items() if name != "status"}
    times = {"occurred_at": moment(row.occurred_at), "received_at": moment(row.received_at)}
    return Interaction(**{**fields, **times, "kind": Kind(row.kind)})
