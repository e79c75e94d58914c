"""One contract suite for every store: in memory, on SQLite, on PostgreSQL, on Valkey."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from experiment.events import Interaction, Kind, Record, Served
from experiment.metrics import COLUMNS
from experiment.ports import AssignmentStore, EventLog, ExperimentRepository, FeedbackLog
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import GATE, DecisionRow, ExperimentRow, Reason, State, Verdict
from experiment.store import schema
from experiment.store.assignments_redis import RedisAssignments
from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from experiment.store.experiments_sql import SqlExperimentRepository
from experiment.store.feedback_memory import MemoryFeedbackLog
from experiment.store.feedback_sql import SqlFeedbackLog
from experiment.store.memory import MemoryAssignments, MemoryEventLog, MemoryExperimentRepository, MemoryTables
from experiment.store.migrate import upgrade

START = datetime(2026, 5, 4, 12, tzinfo=UTC)
WINDOW_S = 3600.0
CAP = 600.0


@dataclass(frozen=True)
class Stores:
    """An event log, what post-training reads of it, and a repository over the same tables; engine: None in memory."""

    log: EventLog
    experiments: ExperimentRepository
    feedback: FeedbackLog
    engine: sa.Engine | None


def _spec(key: str = "fp8", **changes: Any) -> ExperimentSpec:
    planning = {"baseline": 0.05, "relative_sd": 3.0, "users_per_arm": 1000}
    return parse_spec(
        {
            "key": key,
            "control": {"arm": "bf16", "variant": "bf16"},
            "treatments": [{"arm": "fp8", "variant": "fp8"}],
            "ramp": {"steps": [{"coverage": 0.1}, {"coverage": 0.5}]},
            "exposure_window_s": WINDOW_S,
            "metrics": [
                {"name": "ctr", "role": "guardrail", "margin": 0.02, "planning": planning},
                {"name": "watch_time", "role": "quality", "cap": CAP, "planning": planning},
                {"name": "likes", "role": "quality", "planning": planning},
                {"name": "error_share", "role": "quality", "planning": planning},
                {"name": "slow_share", "role": "quality", "planning": planning},
            ],
        }
        | changes
    )


def _served(request: str, user: str = "ann", at_s: float = 0, **other: Any) -> Served:
    fields: dict[str, Any] = {"experiment": "fp8", "run": 1, "arm": "fp8", "bucket": 0.05, "phase": 0}
    fields |= {"served_variant": "fp8", "table_version": 3, "reason": "SPLIT", "fallback": None, "failed": False}
    fields |= {"slow": False, "forced": False, "latency_ms": 12.5}
    return Served(request, user, received_at=START + timedelta(seconds=at_s), **(fields | other))


def _event(event: str, kind: str, request: str, item: str = "i1", at_s: float = 1, **other: Any) -> Interaction:
    at = START + timedelta(seconds=at_s)
    fields: dict[str, Any] = {"user_id": "ann", "position": 0, "value": 1.0, "occurred_at": at} | other
    return Interaction(event, Kind(kind), request, item_id=item, received_at=at, **fields)


def _naive_totals(records: Iterable[Record], window_s: float = WINDOW_S) -> dict[str, dict[str, float]]:
    """user -> totals, written with sets and loops, away from the code under test."""
    requests: dict[str, Served] = {}
    events: dict[str, Interaction] = {}
    for record in records:
        if isinstance(record, Served):
            requests.setdefault(record.request_id, record)
        else:
            events.setdefault(record.event_id, record)
    opened: dict[str, datetime] = {}
    for answer in requests.values():
        if answer.experiment == "fp8" and not answer.forced:
            opened[answer.user_id] = min(answer.received_at, opened.get(answer.user_id, answer.received_at))
    totals = {user: dict.fromkeys(COLUMNS, 0.0) for user in opened}
    unique: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for answer in requests.values():
        if answer.user_id not in opened or answer.forced or answer.experiment != "fp8":
            continue
        closes = opened[answer.user_id] + timedelta(seconds=window_s)
        mine = [event for event in events.values() if event.request_id == answer.request_id]
        inside = [event for event in mine if event.received_at < closes]
        shown = {event.item_id for event in inside if event.kind == "impression"}
        row = totals[answer.user_id]
        if answer.received_at < closes:
            row["requests"] += 1
            row["slow"] += int(answer.slow)
            row["failed"] += int(answer.failed)
            row["fallbacks"] += int(answer.fallback is not None)
        for event in inside:
            if event.item_id in shown and event.kind == "watch":
                row["watch_s"] += event.value
            elif event.item_id in shown and event.kind != "differs":
                unique[answer.user_id, event.kind].add((answer.request_id, event.item_id))
    for (user, kind), items in unique.items():
        column = {"impression": "impressions", "click": "clicks", "like": "likes", "dismiss": "dismisses"}[kind]
        totals[user][column] = float(len(items))
    return totals


def _commit(
    experiments: ExperimentRepository, after: ExperimentRow, before: ExperimentRow, actor: str = GATE
) -> ExperimentRow:
    decision = DecisionRow(
        key=after.key, run=after.run, look=after.looks, at=START, actor=actor, verdict=Verdict.HOLD,
        state_before=before.state, state_after=after.state, step_before=before.step, step_after=after.step,
        reasons=(Reason("waiting", "waiting for more users", metric="ctr", estimate=0.1, n=5),),
        evidence={"users": {"fp8": 5}, "low": None}, spec_digest=after.spec_digest, code_version="abc",
    )  # fmt: skip
    return experiments.commit(after, decision, before.version)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Builders of records and specifications, and the reference that they are checked against."""
    return SimpleNamespace(
        served=_served, event=_event, spec=_spec, naive=_naive_totals, commit=_commit, start=START, cap=CAP, State=State
    )


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ExperimentSpec]:
    """Makes a specification, of key `fp8` unless told otherwise."""
    return _spec


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> sa.Engine:
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('store') / 'crossfade.db'}")
    upgrade(engine)
    return engine


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> Iterator[sa.Engine]:
    engine = create_engine(postgres_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def engine(request: pytest.FixtureRequest) -> sa.Engine:
    """A migrated, empty database."""
    found: sa.Engine = request.getfixturevalue(f"migrated_{request.param}")
    _empty(found)
    return found


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def new_stores(request: pytest.FixtureRequest) -> Callable[[], Stores]:
    """Makes empty stores of one kind; the ones made before are void then."""
    if request.param == "memory":
        return _in_memory
    engine: sa.Engine = request.getfixturevalue(f"migrated_{request.param}")

    def fresh() -> Stores:
        _empty(engine)
        return Stores(SqlEventLog(engine), SqlExperimentRepository(engine), SqlFeedbackLog(engine, page=3), engine)

    return fresh


@pytest.fixture
def stores(new_stores: Callable[[], Stores]) -> Stores:
    """Empty stores."""
    return new_stores()


@pytest.fixture(params=["memory", pytest.param("valkey", marks=pytest.mark.integration)])
async def assignments(request: pytest.FixtureRequest) -> AsyncIterator[AssignmentStore]:
    """An empty assignment store."""
    if request.param == "memory":
        yield MemoryAssignments()
        return
    redis = RedisAssignments.from_url(request.getfixturevalue("redis_url"), timeout_s=5.0, prefix=f"test:{uuid4().hex}")
    yield redis
    await redis.close()


def _in_memory() -> Stores:
    tables = MemoryTables()
    return Stores(MemoryEventLog(tables), MemoryExperimentRepository(tables), MemoryFeedbackLog(tables), None)


def _empty(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))


def database_path(engine: sa.Engine) -> Path:
    """The file of a SQLite engine."""
    return Path(str(engine.url.database))
