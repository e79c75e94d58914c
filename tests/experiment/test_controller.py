"""One read, one verdict, one write, one publish; and every stored look replays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from experiment.controller import look, perform, record_failure, replay, table_of
from experiment.errors import IllegalTransitionError, StoreUnavailableError, VersionConflictError
from experiment.events import Interaction, Kind, Served
from experiment.ports import ExperimentRepository
from experiment.ramp import MAX_FAILURES, Action
from experiment.routing import route
from experiment.spec import parse_spec
from experiment.state import DecisionRow, State, Verdict
from experiment.store.memory import MemoryAssignments, MemoryEventLog, MemoryExperimentRepository, MemoryTables
from serving.control_loop import ControlLoop

BEGAN = datetime(2026, 11, 23, tzinfo=UTC)

SMALL: dict[str, Any] = {
    "key": "small",
    "control": {"arm": "bf16", "variant": "bf16"},
    "treatments": [{"arm": "fp8", "variant": "fp8"}],
    "ramp": {"steps": [{"coverage": c, "min_users_per_arm": 5, "min_duration_s": 2} for c in (0.1, 0.5)]},
    "exposure_window_s": 5,
    "metrics": [
        {"name": "ctr", "role": "guardrail", "margin": 0.3,
         "planning": {"baseline": 0.3, "relative_sd": 0.7, "users_per_arm": 300}}
    ],
    "minimums": {"users_per_arm": 50, "clicks_per_arm": 20, "duration_s": 20},
    "max_duration_s": 600,
}  # fmt: skip


@dataclass
class World:
    """An experiment in memory whose users come and click; time is what the test says."""

    tables: MemoryTables = field(default_factory=MemoryTables)
    now: datetime = BEGAN
    users: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def __post_init__(self) -> None:
        self.repository = MemoryExperimentRepository(self.tables)
        self.log = MemoryEventLog(self.tables)
        self.repository.create(parse_spec(SMALL), self.now, "test")

    def start(self) -> None:
        perform(self.repository, "small", Action.START, "begin", "test", self.now, "v0")

    def pass_second(self, ctr: dict[str, float], arrivals: int = 60) -> None:
        """People arrive, see ten items, click some; then a second passes."""
        table = table_of(self.repository, "bf16")
        records: list[Any] = []
        for _ in range(arrivals):
            self.users += 1
            user, request = f"u{self.users}", f"r{self.users}"
            chosen = route(table, user)
            records.append(self._served(user, request, chosen, table.version))
            if chosen.arm is not None:
                records += self._seen(user, request, ctr[chosen.arm])
        self.log.append(records)
        self.now += timedelta(seconds=1)
        self.log.heartbeat("writer", self.now)

    def _served(self, user: str, request: str, chosen: Any, version: int) -> Served:
        return Served(
            request_id=request, user_id=user, experiment=chosen.experiment, run=chosen.run, arm=chosen.arm,
            bucket=chosen.bucket, phase=chosen.phase, served_variant=chosen.variant, table_version=version,
            reason=chosen.reason, fallback=None, failed=False, slow=False, forced=False, latency_ms=5.0,
            received_at=self.now,
        )  # fmt: skip

    def _seen(self, user: str, request: str, ctr: float) -> Iterator[Interaction]:
        clicked = self.rng.random(10) < ctr
        for place in range(10):
            kinds = [Kind.IMPRESSION, Kind.CLICK] if clicked[place] else [Kind.IMPRESSION]
            for kind in kinds:
                yield Interaction(
                    f"{request}-{place}-{kind}", kind, request, user, f"i{place}", place, 1.0, self.now, self.now
                )

    def run(self, ctr: dict[str, float], seconds: int) -> DecisionRow:
        for _ in range(seconds):
            self.pass_second(ctr)
            decision = look(self.repository, "small", self.now, "v0")
            if decision.state_after.is_final:
                return decision
        return decision


@pytest.fixture
def world() -> World:
    return World()


def test_a_harmless_candidate_goes_all_the_way_by_itself(world: World) -> None:
    world.start()
    last = world.run({"fp8": 0.3, "bf16": 0.3}, 120)
    assert last.verdict is Verdict.PROMOTE
    assert world.repository.get("small").promoted_variant == "fp8"
    assert route(table_of(world.repository, "bf16"), "anybody").variant == "fp8"


def test_a_harmful_candidate_is_rolled_back_by_itself(world: World) -> None:
    world.start()
    last = world.run({"fp8": 0.12, "bf16": 0.3}, 120)
    assert (last.verdict, last.state_after) == (Verdict.ROLLBACK, State.ROLLED_BACK)
    assert last.reasons[0].metric == "ctr"
    assert route(table_of(world.repository, "bf16"), "anybody").variant == "bf16"


@pytest.mark.parametrize("fp8", [0.3, 0.12])
def test_every_stored_look_replays_to_its_verdict_and_reasons(world: World, fp8: float) -> None:
    world.start()
    world.run({"fp8": fp8, "bf16": 0.3}, 60)
    looks = [decision for decision in world.repository.decisions("small") if decision.actor == "gate"]
    assert len(looks) > 5
    spec = world.repository.get("small").spec
    for decision in looks:
        assert replay(spec, decision) == (decision.verdict, tuple(decision.reasons))


def test_a_persons_action_is_no_look_and_cannot_be_replayed(world: World) -> None:
    world.start()
    started = world.repository.decisions("small")[-1]
    assert (started.actor, started.reasons[0].text) == ("test", "begin")
    with pytest.raises(ValueError, match="no look"):
        replay(world.repository.get("small").spec, started)


def test_whoever_is_slower_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.start()
    world.pass_second({"fp8": 0.3, "bf16": 0.3})
    read = world.repository.read_look

    def read_then_be_overtaken(key: str, at: datetime) -> Any:
        found = read(key, at)
        perform(world.repository, "small", Action.PAUSE, "faster", "somebody", world.now, "v0")
        return found

    monkeypatch.setattr(world.repository, "read_look", read_then_be_overtaken)
    with pytest.raises(VersionConflictError):
        look(world.repository, "small", world.now, "v0")
    assert [decision.actor for decision in world.repository.decisions("small")] == ["test", "test", "somebody"]
    assert world.repository.get("small").state is State.PAUSED


def test_an_old_version_is_refused(world: World) -> None:
    world.start()
    with pytest.raises(VersionConflictError):
        perform(world.repository, "small", Action.PAUSE, "late", "test", world.now, "v0", expected_version=1)


def test_looks_that_fail_are_written_down_and_pause_the_run(world: World) -> None:
    world.start()
    for number in range(MAX_FAILURES):
        decision = record_failure(world.repository, "small", RuntimeError("no"), world.now, "v0")
        assert (decision.verdict, decision.look) == (Verdict.ERROR, number + 1)
        assert "RuntimeError: no" in decision.reasons[0].text
    assert world.repository.get("small").state is State.PAUSED


def test_what_has_not_started_is_not_looked_at(world: World) -> None:
    with pytest.raises(IllegalTransitionError):
        look(world.repository, "small", world.now, "v0")


class Crashing(MemoryAssignments):
    """Dies instead of publishing, until it is mended."""

    broken = True

    async def publish(self, table: Any) -> None:
        if self.broken:
            raise StoreUnavailableError("killed between commit and publish")
        await super().publish(table)


async def test_a_crash_between_commit_and_publish_is_finished_by_the_next_tick(world: World) -> None:
    assignments = Crashing()
    repository: ExperimentRepository = world.repository
    world.start()
    for _ in range(8):
        world.pass_second({"fp8": 0.3, "bf16": 0.3})
    loop = ControlLoop(repository, assignments, "bf16", lambda: world.now, "v0")
    await loop.tick()
    assert await assignments.read_table() is None
    committed = len(repository.decisions("small"))
    assignments.broken = False
    await loop.tick()
    published = await assignments.read_table()
    assert published is not None
    assert published.version == repository.routing_version()
    assert len(repository.decisions("small")) == committed, "the look was not made again"


async def test_an_unreachable_store_makes_no_look_and_moves_no_traffic(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assignments = MemoryAssignments()
    world.start()
    loop = ControlLoop(world.repository, assignments, "bf16", lambda: world.now, "v0")
    await loop.tick()
    before = await assignments.read_table()

    def away(*_: Any) -> Any:
        raise StoreUnavailableError("SQL is away")

    monkeypatch.setattr(world.repository, "list", away)
    with pytest.raises(StoreUnavailableError):
        await loop.tick()
    assert await assignments.read_table() == before
