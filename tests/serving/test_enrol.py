"""First sights: Redis's word outranks the hash, a dead Redis costs nobody their arm, and what it missed it is told."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.errors import StoreUnavailableError
from experiment.ports import Enrolment
from experiment.store.memory import MemoryAssignments
from serving.enrol import Enrolments, Kept
from tests.serving.waiting import until


class Assignments(MemoryAssignments):
    """A store that may be down, and counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.asked: list[str] = []

    async def assign_if_absent(self, experiment: str, run: int, user_id: str, arm: str, epoch: int) -> Enrolment:
        self.asked.append(user_id)
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailableError("away")
        return await super().assign_if_absent(experiment, run, user_id, arm, epoch)

    async def kept(self, user_id: str, run: int = 1) -> Enrolment:
        return await MemoryAssignments.assign_if_absent(self, "e", run, user_id, "nobody told", 0)


@pytest.fixture
def store() -> Assignments:
    return Assignments()


def enrolments(store: Assignments, capacity: int = 100, retry_s: float = 0.0) -> Enrolments:
    return Enrolments(store, capacity, retry_s)


async def test_a_first_sight_is_told_to_redis_once(store: Assignments) -> None:
    known = enrolments(store)
    for number in range(5):
        assert await known.keep("e", 1, "u", "fp8", 7) == Kept("fp8", stale=False, first=number == 0)
    assert store.asked == ["u"]
    assert await store.kept("u") == Enrolment("fp8", 7, first=False)


async def test_redis_outranks_the_hash(store: Assignments) -> None:
    await store.assign_if_absent("e", 1, "u", "bf16", 1)
    known = enrolments(store)
    assert [await known.keep("e", 1, "u", "fp8", 2) for _ in range(2)] == [Kept("bf16", stale=False)] * 2


async def test_runs_and_experiments_are_kept_apart(store: Assignments) -> None:
    known = enrolments(store)
    arms = {("e", 1): "fp8", ("e", 2): "bf16", ("f", 1): "bf16"}
    for _ in range(2):
        for (experiment, run), arm in arms.items():
            assert (await known.keep(experiment, run, "u", arm, 1)).arm == arm


async def test_without_redis_everybody_gets_the_arm_of_the_hash(store: Assignments) -> None:
    store.down = True
    known = enrolments(store)
    assert await known.keep("e", 1, "u", "fp8", 1) == Kept("fp8", stale=True)
    assert known.owed == 1


async def test_who_is_known_is_not_stale_without_redis(store: Assignments) -> None:
    known = enrolments(store)
    await known.keep("e", 1, "u", "fp8", 1)
    store.down = True
    assert await known.keep("e", 1, "u", "fp8", 1) == Kept("fp8", stale=False)


async def test_a_dead_redis_is_asked_once_in_a_while_only(store: Assignments) -> None:
    store.down = True
    known = enrolments(store, retry_s=60.0)
    for number in range(20):
        await known.keep("e", 1, f"u{number}", "fp8", 1)
    assert store.asked == ["u0"]
    assert known.owed == 20


async def test_what_redis_missed_it_is_told_when_it_is_back(store: Assignments) -> None:
    store.down = True
    known = enrolments(store)
    for number in range(20):
        await known.keep("e", 1, f"u{number}", "fp8", 3)
    store.down = False
    await known.keep("e", 1, "somebody new", "bf16", 4)
    await until(lambda: known.owed == 0)
    assert [await store.kept(f"u{number}") for number in range(20)] == [Enrolment("fp8", 3, first=False)] * 20


async def test_a_redis_that_dies_again_is_told_the_rest_later(store: Assignments) -> None:
    store.down = True
    known = enrolments(store)
    for number in range(5):
        await known.keep("e", 1, f"u{number}", "fp8", 3)
    store.down = False
    await known.keep("e", 1, "first", "bf16", 4)
    store.down = True
    await asyncio.sleep(0.02)
    assert known.owed > 0
    store.down = False
    await known.keep("e", 1, "second", "bf16", 4)
    await until(lambda: known.owed == 0)
    assert all([not (await store.kept(f"u{number}")).first for number in range(5)])


async def test_the_arm_of_the_first_sight_is_kept_while_redis_is_away_and_told_when_it_is_back(
    store: Assignments,
) -> None:
    store.down = True
    known = enrolments(store)
    await known.keep("e", 1, "u", "fp8", 3)
    assert await known.keep("e", 1, "u", "bf16", 4) == Kept("fp8", stale=True)
    store.down = False
    assert await known.keep("e", 1, "u", "bf16", 5) == Kept("fp8", stale=False)
    assert await store.kept("u") == Enrolment("fp8", 3, first=False)


async def test_memory_is_bounded_and_forgets_who_came_longest_ago(store: Assignments) -> None:
    known = enrolments(store, capacity=3)
    for user in ("a", "b", "c", "a", "d"):
        await known.keep("e", 1, user, "fp8", 1)
    store.asked.clear()
    for user in ("a", "c", "d", "b"):
        assert (await known.keep("e", 1, user, "fp8", 1)).arm == "fp8"
    assert store.asked == ["b"]


async def test_what_is_owed_is_bounded_too(store: Assignments) -> None:
    store.down = True
    known = enrolments(store, capacity=3)
    for number in range(10):
        assert (await known.keep("e", 1, f"u{number}", "fp8", 1)).arm == "fp8"
    assert known.owed == 3


@given(
    st.lists(
        st.one_of(st.booleans(), st.tuples(st.sampled_from("abcdef"), st.sampled_from(["fp8", "bf16"]))), max_size=60
    )
)
def test_whenever_redis_comes_and_goes_a_user_keeps_the_first_arm(happenings: list[bool | tuple[str, str]]) -> None:
    async def live() -> None:
        store = Assignments()
        known = enrolments(store)
        first: dict[str, str] = {}
        for what in happenings:
            if isinstance(what, bool):
                store.down = what
                continue
            user, hashed = what
            kept = await known.keep("e", 1, user, hashed, 1)
            assert kept.arm == first.setdefault(user, hashed)
            assert store.down or not kept.stale
        store.down = False
        await known.keep("e", 1, "the last", "bf16", 1)
        await until(lambda: known.owed == 0)
        for user, arm in first.items():
            assert (await store.kept(user)).arm == arm

    asyncio.run(live())
