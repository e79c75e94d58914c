"""Logged feedback from SQL, a page of requests at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from experiment.events import Interaction, Kind, Served, Status
from experiment.feedback import LEARNED_FROM, LoggedSlate, Span, logged_slate
from experiment.store import schema
from experiment.store.engine import reading
from experiment.store.events_sql import interaction_of, served_of
from experiment.store.schema import micros

PAGE = 500
"""Requests in memory at a time; well under every driver's limit of parameters."""


class SqlFeedbackLog:
    """`FeedbackLog` on SQLite or PostgreSQL. The database sorts ids only; texts follow by primary key, page by page."""

    def __init__(self, engine: sa.Engine, page: int = PAGE) -> None:
        self._engine, self._page = engine, page

    def count(self, span: Span) -> int:
        """See `FeedbackLog.count`."""
        query = sa.select(sa.func.count()).select_from(schema.served).where(*_within(span))
        with reading(self._engine) as connection:
            return connection.scalar(query) or 0

    def read(self, span: Span) -> Iterator[LoggedSlate]:
        """See `FeedbackLog.read`."""
        table = schema.served
        ids = sa.select(table.c.request_id).where(*_within(span))
        ids = ids.order_by(table.c.user_id, table.c.received_at, table.c.request_id)
        ids = ids.execution_options(stream_results=True, yield_per=self._page)
        with reading(self._engine) as connection:
            for page in connection.scalars(ids).partitions():
                yield from _slates(connection, page)


def _within(span: Span) -> list[sa.ColumnElement[bool]]:
    table = schema.served
    found: list[sa.ColumnElement[bool]] = [table.c.slate.is_not(None)]
    if span.since is not None:
        found.append(table.c.received_at >= micros(span.since))
    if span.until is not None:
        found.append(table.c.received_at < micros(span.until))
    if span.variant is not None:
        found.append(table.c.served_variant == span.variant)
    return found


def _slates(connection: sa.Connection, requests: Sequence[str]) -> list[LoggedSlate]:
    events = schema.interactions
    wanted = sa.select(events).where(
        events.c.request_id.in_(requests),
        events.c.kind != Kind.DIFFERS.value,
        events.c.status.in_([status.value for status in LEARNED_FROM]),
    )
    about: dict[str, list[tuple[Interaction, Status]]] = defaultdict(list)
    for row in connection.execute(wanted):
        about[row.request_id].append((interaction_of(row), Status(row.status)))
    full = sa.select(schema.served).where(schema.served.c.request_id.in_(requests))
    served: dict[str, Any] = {row.request_id: row for row in connection.execute(full)}
    answered: list[Served] = [served_of(served[request]) for request in requests]
    return [logged_slate(one, about[one.request_id]) for one in answered]
