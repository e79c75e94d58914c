"""In-memory stores that keep the ports' contracts, for tests and rehearsals in one process. Nothing outlives them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import RLock
from typing import Any

import numpy as np

from experiment.errors import ExperimentExistsError, UnknownExperimentError, VersionConflictError
from experiment.events import Interaction, Kind, Record, Served, Status
from experiment.fold import UserFold, settle
from experiment.metrics import COLUMNS, METRICS
from experiment.ports import Enrolment, Ingested
from experiment.ramp import created_by, new_experiment
from experiment.routing import RoutingTable
from experiment.spec import ExperimentSpec, MetricSpec
from experiment.state import GATE, NEWEST, ArmAggregate, DecisionRow, ExperimentRow, LookInput
from experiment.store.looks_sql import LOST_AFTER
from experiment.store.storable import storable
from stats.moments import Moments

UserKey = tuple[str, int, str]
"""(experiment, run, user id)."""


@dataclass(slots=True)
class MemoryTables:
    """What a database would hold; hand the same one to the event log and to the repository."""

    experiments: dict[str, ExperimentRow] = field(default_factory=dict)
    decisions: list[DecisionRow] = field(default_factory=list)
    overrides: dict[str, dict[str, tuple[str, datetime, str]]] = field(default_factory=dict)
    answers: dict[str, tuple[str, Mapping[str, Any], datetime]] = field(default_factory=dict)
    writers: dict[str, datetime] = field(default_factory=dict)
    served: dict[str, Served] = field(default_factory=dict)
    interactions: dict[str, Interaction] = field(default_factory=dict)
    statuses: dict[str, Status] = field(default_factory=dict)
    folds: dict[UserKey, UserFold] = field(default_factory=dict)
    requests_of: dict[UserKey, list[str]] = field(default_factory=lambda: defaultdict(list))
    events_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    duplicates: int = 0
    routing_version: int = 0
    lock: RLock = field(default_factory=RLock)


class MemoryEventLog:
    """`EventLog` over `MemoryTables`."""

    def __init__(self, tables: MemoryTables) -> None:
        self._tables = tables

    def append(self, records: Sequence[Record]) -> Ingested:
        """See `EventLog.append`."""
        tables, touched, fresh = self._tables, set[str](), 0
        with tables.lock:
            for record in map(storable, records):
                if isinstance(record, Served):
                    if record.request_id in tables.served:
                        continue
                    tables.served[record.request_id] = record
                    if (key := _user_of(tables, record)) is not None:
                        tables.requests_of[key].append(record.request_id)
                else:
                    if record.event_id in tables.interactions:
                        continue
                    tables.interactions[record.event_id] = record
                    tables.statuses[record.event_id] = Status.PENDING
                    tables.events_of[record.request_id].append(record.event_id)
                touched.add(record.request_id)
                fresh += 1
            self._attribute(touched)
            tables.duplicates += len(records) - fresh
        return Ingested(fresh, len(records) - fresh)

    def heartbeat(self, writer: str, flushed_through: datetime) -> None:
        """See `EventLog.heartbeat`."""
        with self._tables.lock:
            self._tables.writers[writer] = flushed_through

    def retire(self, writer: str) -> None:
        """See `EventLog.retire`."""
        with self._tables.lock:
            self._tables.writers.pop(writer, None)

    def counts(self) -> Mapping[str, int]:
        """See `EventLog.counts`."""
        tables = self._tables
        with tables.lock:
            kinds = Counter(event.kind.value for event in tables.interactions.values())
            statuses = Counter(status.value for status in tables.statuses.values())
            found = {kind.value: kinds[kind.value] for kind in Kind} | {
                name.value: statuses[name.value] for name in Status
            }
            return {"served": len(tables.served), **found, "duplicates": tables.duplicates}

    def _attribute(self, requests: set[str]) -> None:
        tables, users = self._tables, set[UserKey]()
        for request in requests & tables.served.keys():
            if (key := _user_of(tables, tables.served[request])) is not None:
                users.add(key)
            else:
                tables.statuses |= dict.fromkeys(tables.events_of[request], Status.UNENROLLED)
        for key in users:
            self._fold(key)

    def _fold(self, key: UserKey) -> None:
        tables, row = self._tables, self._tables.experiments[key[0]]
        requests = tables.requests_of[key]
        events = [tables.interactions[event] for request in requests for event in tables.events_of[request]]
        served = [tables.served[request] for request in requests]
        window = timedelta(seconds=row.spec.exposure_window_s)
        watermark = row.watermark if row.run == key[1] else None
        closes_at = tables.folds[key].closes_at if key in tables.folds else None
        fold, statuses = settle(served, events, tables.statuses, window, watermark, closes_at)
        if fold is not None:
            tables.folds[key] = fold
        tables.statuses |= statuses


class MemoryExperimentRepository:
    """`ExperimentRepository` over `MemoryTables`."""

    def __init__(self, tables: MemoryTables) -> None:
        self._tables = tables

    def create(self, spec: ExperimentSpec, at: datetime, actor: str) -> ExperimentRow:
        """See `ExperimentRepository.create`."""
        with self._tables.lock:
            if spec.key in self._tables.experiments:
                raise ExperimentExistsError(spec.key)
            row = self._tables.experiments[spec.key] = new_experiment(spec, at)
            self._tables.decisions.append(created_by(actor, row))
        return row

    def get(self, key: str) -> ExperimentRow:
        """See `ExperimentRepository.get`."""
        with self._tables.lock:
            if (row := self._tables.experiments.get(key)) is None:
                raise UnknownExperimentError(key)
            return row

    def list(self) -> Sequence[ExperimentRow]:
        """See `ExperimentRepository.list`."""
        with self._tables.lock:
            by_key = sorted(self._tables.experiments.values(), key=lambda row: row.key)
        return sorted(by_key, key=lambda row: row.created_at, reverse=True)

    def read_look(self, key: str, at: datetime) -> LookInput:
        """See `ExperimentRepository.read_look`."""
        tables = self._tables
        with tables.lock:
            row = self.get(key)
            live = [flushed for flushed in tables.writers.values() if flushed >= at - LOST_AFTER]
            watermark = min(live, default=None)
            folds = [fold for user, fold in tables.folds.items() if user[:2] == (key, row.run)]
            statuses = Counter(tables.statuses.values())
        arms = {
            arm.arm: _aggregate(row.spec, arm.arm, [fold for fold in folds if fold.arm == arm.arm], watermark)
            for arm in row.spec.arms
        }
        return LookInput(row, arms, watermark, statuses[Status.PENDING], statuses[Status.LATE])

    def commit(self, after: ExperimentRow, decision: DecisionRow, expected_version: int) -> ExperimentRow:
        """See `ExperimentRepository.commit`."""
        tables = self._tables
        with tables.lock:
            if after.key not in tables.experiments or tables.experiments[after.key].version != expected_version:
                raise VersionConflictError(after.key, expected_version)
            written = tables.experiments[after.key] = replace(after, version=expected_version + 1)
            tables.decisions.append(decision)
            if (decision.state_before, decision.step_before) != (decision.state_after, decision.step_after):
                tables.routing_version += 1
        return written

    def decisions(self, key: str, run: int | None = None, thinned_to: int | None = None) -> Sequence[DecisionRow]:
        """See `ExperimentRepository.decisions`."""
        with self._tables.lock:
            chosen = self.get(key).run if run is None else run
            found = [one for one in self._tables.decisions if (one.key, one.run) == (key, chosen)]
        if thinned_to is None:
            return found
        every = max(1, max((one.look for one in found), default=0) // thinned_to)
        return [
            one
            for place, one in enumerate(found)
            if one.look % every == 0
            or (one.state_before, one.step_before) != (one.state_after, one.step_after)
            or one.actor != GATE
            or place >= len(found) - NEWEST
        ]

    def routing_version(self) -> int:
        """See `ExperimentRepository.routing_version`."""
        return self._tables.routing_version

    def overrides(self) -> Mapping[str, Mapping[str, str]]:
        """See `ExperimentRepository.overrides`."""
        with self._tables.lock:
            forced = self._tables.overrides.items()
            return {key: {user: arm for user, (arm, _, _) in users.items()} for key, users in forced if users}

    def set_override(self, key: str, user_id: str, arm: str | None, at: datetime, actor: str) -> None:
        """See `ExperimentRepository.set_override`."""
        with self._tables.lock:
            self.get(key)
            users = self._tables.overrides.setdefault(key, {})
            if arm is None:
                users.pop(user_id, None)
            else:
                users[user_id] = (arm, at, actor)
            self._tables.routing_version += 1

    def remember(self, idempotency_key: str, request_digest: str, response: Mapping[str, Any], at: datetime) -> None:
        """See `ExperimentRepository.remember`."""
        self._tables.answers[idempotency_key] = (request_digest, dict(response), at)

    def recall(self, idempotency_key: str) -> tuple[str, Mapping[str, Any]] | None:
        """See `ExperimentRepository.recall`."""
        kept = self._tables.answers.get(idempotency_key)
        return None if kept is None else kept[:2]


class MemoryAssignments:
    """`AssignmentStore` in one process."""

    def __init__(self) -> None:
        self._kept: dict[UserKey, tuple[str, int]] = {}
        self._table: RoutingTable | None = None

    async def assign_if_absent(self, experiment: str, run: int, user_id: str, arm: str, epoch: int) -> Enrolment:
        """See `AssignmentStore.assign_if_absent`."""
        key = (experiment, run, user_id)
        first = key not in self._kept
        kept_arm, kept_epoch = self._kept.setdefault(key, (arm, epoch))
        return Enrolment(kept_arm, kept_epoch, first)

    async def publish(self, table: RoutingTable) -> None:
        """See `AssignmentStore.publish`."""
        if self._table is None or table.version > self._table.version:
            self._table = table

    async def read_table(self) -> RoutingTable | None:
        """See `AssignmentStore.read_table`."""
        return self._table


def _user_of(tables: MemoryTables, record: Served) -> UserKey | None:
    if record.forced or record.experiment not in tables.experiments or record.run is None:
        return None
    return record.experiment, record.run, record.user_id


def _aggregate(spec: ExperimentSpec, arm: str, folds: Sequence[UserFold], watermark: datetime | None) -> ArmAggregate:
    closed = [fold for fold in folds if watermark is not None and fold.closes_at <= watermark]
    phases = Counter(fold.phase for fold in folds)
    triggered, rest = (
        {metric.name: _moments(metric, [fold for fold in closed if fold.triggered is flag]) for metric in spec.metrics}
        if spec.shadow
        else {}
        for flag in (True, False)
    )
    return ArmAggregate(
        arm=arm,
        exposed_by_phase=tuple(phases[phase] for phase in range(len(spec.ramp.steps))),
        closed_users=len(closed),
        moments={metric.name: _moments(metric, closed) for metric in spec.metrics},
        totals={name: float(sum(fold.totals[name] for fold in folds)) for name in COLUMNS},
        triggered=triggered,
        rest=rest,
    )


def _moments(metric: MetricSpec, folds: Sequence[UserFold]) -> Moments:
    known = METRICS[metric.name]
    x = np.array([sum(fold.totals[name] for name in known.numerator) for fold in folds], dtype=np.float64)
    if metric.cap is not None:
        x = np.minimum(x, metric.cap)
    if known.denominator is None:
        return Moments.from_values(x)
    return Moments.from_values(x, np.array([fold.totals[known.denominator] for fold in folds], dtype=np.float64))
