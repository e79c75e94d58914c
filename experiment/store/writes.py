"""The three writes that SQLite and PostgreSQL spell alike but SQLAlchemy imports apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from experiment.store import schema


def _dialect(connection: sa.Connection) -> Any:
    return postgresql if connection.dialect.name == "postgresql" else sqlite


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Insert what is not there yet; returns the ids that were new."""
    if not rows:
        return []
    statement = _dialect(connection).insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return list(connection.scalars(statement, list(rows)))


def upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> None:
    """Insert, or overwrite the row of the same key."""
    insert = _dialect(connection).insert(table)
    changed = {name: insert.excluded[name] for name in rows[0] if name not in key}
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=changed), list(rows))


def add_to_counter(connection: sa.Connection, name: str, amount: int) -> None:
    """Add to a named counter, from 0 where it is new."""
    insert = _dialect(connection).insert(schema.counters).values(name=name, value=amount)
    more = {"value": schema.counters.c.value + amount}
    connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=more))
