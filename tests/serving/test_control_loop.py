"""The gate's clock: each experiment when it is due, one's trouble is not another's, and the table follows the rows."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from experiment.controller import perform, table_of
from experiment.errors import StoreUnavailableError, VersionConflictError
from experiment.ramp import MAX_FAILURES, Action
from experiment.routing import RoutingTable
from experiment.spec import parse_spec
from experiment.state import DecisionRow, LookInput, State, Verdict
from experiment.store.memory import MemoryAssignments, MemoryExperimentRepository, MemoryTables
from serving.control_loop import ControlLoop
from tests.experiment.factories import DOCUMENT
from tests.serving.waiting import until

BEGAN = datetime(2026, 11, 23, tzinfo=UTC)


class Repository(MemoryExperimentRepository):
    """Answers a look at an experiment with an error where one is set."""

    def __init__(self) -> None:
        super().__init__(MemoryTables())
        self.errors: dict[str, Exception] = {}
        self.lists = 0
        self.list_error: Exception | None = None

    def list(self) -> Any:
        self.lists += 1
        if self.list_error is not None:
            raise self.list_error
        return super().list()

    def read_look(self, key: str, at: datetime) -> LookInput:
        if key in self.errors:
            raise self.errors[key]
        return super().read_look(key, at)


class Assignments(MemoryAssignments):
    """Counts what is published; Redis may be down."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[int] = []
        self.down = False

    async def publish(self, table: RoutingTable) -> None:
        self.published.append(table.version)
        await super().publish(table)

    async def read_table(self) -> RoutingTable | None:
        if self.down:
            raise StoreUnavailableError("away")
        return await super().read_table()


@dataclass
class World:
    """Experiments and the loop that looks at them; time is what the test says."""

    repository: Repository = field(default_factory=Repository)
    assignments: Assignments = field(default_factory=Assignments)
    now: datetime = BEGAN

    def __post_init__(self) -> None:
        self.loop = ControlLoop(self.repository, self.assignments, "bf16", lambda: self.now, "v1", tick_s=0.001)

    def run(self, key: str, interval_s: float = 10.0) -> None:
        document = {**copy.deepcopy(DOCUMENT), "key": key, "look_interval_s": interval_s}
        self.repository.create(parse_spec(document), self.now, "ann")
        self.now += timedelta(microseconds=1)
        self.act(key, Action.START)

    def act(self, key: str, action: Action) -> None:
        perform(self.repository, key, action, "because", "ann", self.now, "v1")

    async def tick(self, after_s: float = 0.0) -> list[str]:
        """Whose looks were made."""
        self.now += timedelta(seconds=after_s)
        return sorted(decision.key for decision in await self.loop.tick())

    def looks(self, key: str) -> list[DecisionRow]:
        return [decision for decision in self.repository.decisions(key) if decision.actor == "gate"]


@pytest.fixture
def world() -> World:
    return World()


async def test_each_experiment_is_looked_at_when_it_is_due(world: World) -> None:
    world.run("often", 10)
    world.run("seldom", 25)
    assert await world.tick() == ["often", "seldom"]
    assert await world.tick(9.9) == []
    assert await world.tick(0.1) == ["often"]
    assert await world.tick(15) == ["often", "seldom"]
    assert [decision.look for decision in world.looks("often")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("actions", "looked"),
    [([], True), ([Action.PAUSE], True), ([Action.STOP], False), ([Action.ROLLBACK], False)],
)
async def test_what_runs_or_pauses_is_looked_at_and_nothing_else(
    world: World, actions: list[Action], looked: bool
) -> None:
    world.run("e")
    for action in actions:
        world.act("e", action)
    assert bool(await world.tick()) is looked


async def test_a_look_is_made_with_the_time_and_the_code_of_the_loop(world: World) -> None:
    world.run("e")
    await world.tick(3)
    (decision,) = world.looks("e")
    assert (decision.at, decision.code_version, decision.verdict) == (world.now, "v1", Verdict.NO_DATA)


async def test_a_bug_in_one_look_is_written_down_and_hinders_no_other(world: World) -> None:
    world.run("broken")
    world.run("sound")
    world.repository.errors["broken"] = ZeroDivisionError("a bug")
    assert await world.tick() == ["broken", "sound"]
    (failed,) = world.looks("broken")
    assert failed.verdict is Verdict.ERROR
    assert "ZeroDivisionError: a bug" in failed.reasons[0].text
    for _ in range(MAX_FAILURES - 1):
        await world.tick(10)
    assert world.repository.get("broken").state is State.PAUSED
    assert world.repository.get("sound").state is State.RUNNING


async def test_who_was_faster_is_no_failure_and_the_next_look_comes_in_its_time(world: World) -> None:
    world.run("e")
    world.repository.errors["e"] = VersionConflictError("e", 2)
    assert await world.tick() == []
    assert world.looks("e") == []
    world.repository.errors.clear()
    assert await world.tick(10) == ["e"]


async def test_an_unreachable_store_is_no_failed_look(world: World) -> None:
    world.run("e")
    world.repository.errors["e"] = StoreUnavailableError("away")
    with pytest.raises(StoreUnavailableError):
        await world.tick()
    assert world.repository.get("e").failures == 0


async def test_the_table_is_published_when_it_is_newer_and_only_then(world: World) -> None:
    world.run("e")
    await world.tick()
    published = await world.assignments.read_table()
    assert published == table_of(world.repository, "bf16")
    await world.tick(10)
    await world.tick(10)
    assert len(world.assignments.published) == 1
    world.act("e", Action.ADVANCE)
    await world.tick()
    assert world.assignments.published == [published.version, published.version + 1]


async def test_a_redis_that_lost_its_data_gets_the_table_again(world: World) -> None:
    world.run("e")
    await world.tick()
    world.assignments._table = None
    await world.tick()
    assert await world.assignments.read_table() == table_of(world.repository, "bf16")


async def test_without_redis_looks_go_on_and_the_table_waits(world: World) -> None:
    world.run("e")
    world.assignments.down = True
    assert await world.tick() == ["e"]
    assert world.assignments.published == []
    world.assignments.down = False
    await world.tick()
    assert len(world.assignments.published) == 1


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a bug")], ids=repr)
async def test_the_loop_outlives_whatever_a_tick_dies_of_and_ends_when_told(world: World, error: Exception) -> None:
    world.run("e")
    world.repository.list_error = error
    running = asyncio.create_task(world.loop.run())
    await until(lambda: world.repository.lists > 3)
    assert world.loop.last_tick is None
    world.repository.list_error = None
    await until(lambda: world.loop.last_tick is not None)
    assert world.looks("e")
    world.loop.stop()
    await asyncio.wait_for(running, 5)


async def test_two_loops_at_once_do_no_harm(world: World) -> None:
    """A rolling update has two for a while: every look that is written has a number of its own."""
    world.run("e", 1)
    other = ControlLoop(world.repository, world.assignments, "bf16", lambda: world.now, "v2")
    for _ in range(20):
        await asyncio.gather(world.loop.tick(), other.tick())
        world.now += timedelta(seconds=1)
    numbers = [decision.look for decision in world.looks("e")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 20
    assert world.repository.get("e").looks == len(numbers)
    assert world.repository.get("e").failures == 0
