"""Experiments in SQL: optimistic locking, and one decision row with every change."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from experiment.errors import ExperimentExistsError, UnknownExperimentError, VersionConflictError
from experiment.ramp import created_by, new_experiment
from experiment.spec import ExperimentSpec
from experiment.state import GATE, NEWEST, DecisionRow, ExperimentRow, LookInput
from experiment.store import schema
from experiment.store.engine import reading, writing
from experiment.store.looks_sql import read_look
from experiment.store.rows import decision_from_row, decision_to_row, experiment_from_row, experiment_to_row
from experiment.store.schema import micros
from experiment.store.writes import add_to_counter, upsert

ROUTING = "routing_version"


class SqlExperimentRepository:
    """`ExperimentRepository` on SQLite or PostgreSQL."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self, spec: ExperimentSpec, at: datetime, actor: str) -> ExperimentRow:
        """See `ExperimentRepository.create`."""
        row = new_experiment(spec, at)
        created = created_by(actor, row)
        try:
            with writing(self._engine) as connection:
                connection.execute(sa.insert(schema.experiments).values(experiment_to_row(row)))
                connection.execute(sa.insert(schema.decisions).values(decision_to_row(created)))
        except IntegrityError as error:
            raise ExperimentExistsError(spec.key) from error
        return row

    def get(self, key: str) -> ExperimentRow:
        """See `ExperimentRepository.get`."""
        with reading(self._engine) as connection:
            return _get(connection, key)

    def list(self) -> Sequence[ExperimentRow]:
        """See `ExperimentRepository.list`."""
        table = schema.experiments
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(table).order_by(table.c.created_at.desc(), table.c.key)).mappings()
            return [experiment_from_row(dict(row)) for row in rows]

    def read_look(self, key: str, at: datetime) -> LookInput:
        """See `ExperimentRepository.read_look`."""
        with reading(self._engine) as connection:
            return read_look(connection, _get(connection, key), at)

    def commit(self, after: ExperimentRow, decision: DecisionRow, expected_version: int) -> ExperimentRow:
        """See `ExperimentRepository.commit`."""
        table = schema.experiments
        written = replace(after, version=expected_version + 1)
        with writing(self._engine) as connection:
            current = (table.c.key == after.key) & (table.c.version == expected_version)
            result = connection.execute(sa.update(table).where(current).values(experiment_to_row(written)))
            if result.rowcount != 1:
                raise VersionConflictError(after.key, expected_version)
            connection.execute(sa.insert(schema.decisions).values(decision_to_row(decision)))
            if (decision.state_before, decision.step_before) != (decision.state_after, decision.step_after):
                add_to_counter(connection, ROUTING, 1)
        return written

    def decisions(self, key: str, run: int | None = None, thinned_to: int | None = None) -> Sequence[DecisionRow]:
        """See `ExperimentRepository.decisions`."""
        table = schema.decisions
        with reading(self._engine) as connection:
            chosen = run if run is not None else _get(connection, key).run
            of_run = (table.c.key == key) & (table.c.run == chosen)
            query = sa.select(table).where(of_run).order_by(table.c.id)
            if thinned_to is not None:
                looks = connection.scalar(sa.select(sa.func.max(table.c.look)).where(of_run)) or 0
                query = query.where(_worth_keeping(of_run, max(1, looks // thinned_to)))
            return [decision_from_row(dict(row)) for row in connection.execute(query).mappings()]

    def routing_version(self) -> int:
        """See `ExperimentRepository.routing_version`."""
        query = sa.select(schema.counters.c.value).where(schema.counters.c.name == ROUTING)
        with reading(self._engine) as connection:
            return connection.scalar(query) or 0

    def overrides(self) -> Mapping[str, Mapping[str, str]]:
        """See `ExperimentRepository.overrides`."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        with reading(self._engine) as connection:
            for row in connection.execute(sa.select(schema.overrides)):
                found[row.experiment][row.user_id] = row.arm
        return dict(found)

    def set_override(self, key: str, user_id: str, arm: str | None, at: datetime, actor: str) -> None:
        """See `ExperimentRepository.set_override`."""
        table = schema.overrides
        with writing(self._engine) as connection:
            _get(connection, key)
            if arm is None:
                mine = (table.c.experiment == key) & (table.c.user_id == user_id)
                connection.execute(sa.delete(table).where(mine))
            else:
                row = {"experiment": key, "user_id": user_id, "arm": arm, "at": micros(at), "actor": actor}
                upsert(connection, table, [row], ["experiment", "user_id"])
            add_to_counter(connection, ROUTING, 1)

    def remember(self, idempotency_key: str, request_digest: str, response: Mapping[str, Any], at: datetime) -> None:
        """See `ExperimentRepository.remember`."""
        row = {
            "key": idempotency_key,
            "request_digest": request_digest,
            "response": json.dumps(dict(response)),
            "at": micros(at),
        }
        with writing(self._engine) as connection:
            upsert(connection, schema.idempotency, [row], ["key"])

    def recall(self, idempotency_key: str) -> tuple[str, Mapping[str, Any]] | None:
        """See `ExperimentRepository.recall`."""
        table = schema.idempotency
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(table).where(table.c.key == idempotency_key)).one_or_none()
        return None if row is None else (row.request_digest, json.loads(row.response))


def _worth_keeping(of_run: sa.ColumnElement[bool], every: int) -> sa.ColumnElement[bool]:
    """What `thinned_to` leaves: each `every`-th look, changes, people's actions and the newest."""
    table = schema.decisions
    newest = sa.select(table.c.id).where(of_run).order_by(table.c.id.desc()).limit(NEWEST)
    return sa.or_(
        table.c.look % every == 0,
        table.c.state_before != table.c.state_after,
        table.c.step_before != table.c.step_after,
        table.c.actor != GATE,
        table.c.id.in_(newest.scalar_subquery()),
    )


def _get(connection: sa.Connection, key: str) -> ExperimentRow:
    if "\0" in key:  # PostgreSQL refuses the question
        raise UnknownExperimentError(key)
    query = sa.select(schema.experiments).where(schema.experiments.c.key == key)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise UnknownExperimentError(key)
    return experiment_from_row(dict(row))
