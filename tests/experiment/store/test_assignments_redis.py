"""The assignment contract, in memory and on a real Valkey; and what happens when Redis is away."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from experiment.errors import StoreUnavailableError
from experiment.ports import AssignmentStore, Enrolment
from experiment.routing import RoutingEntry, RoutingTable, arm_ranges
from experiment.spec import ExperimentSpec
from experiment.store.assignments_redis import RedisAssignments

ALLOWED_S = 0.3


def _table(version: int, spec: ExperimentSpec | None = None) -> RoutingTable:
    entries: tuple[RoutingEntry, ...] = ()
    if spec is not None:
        entry = RoutingEntry("fp8", 2, "fp8#2", "default", 0.0, 1.0, 1, 200.0, arm_ranges(spec, 0.1), {"ünï": "fp8"})
        entries = (entry,)
    return RoutingTable(version, "bf16", entries)


async def test_assign_if_absent_keeps_the_first_arm_and_epoch(assignments: AssignmentStore) -> None:
    assert await assignments.assign_if_absent("fp8", 1, "ann", "fp8", 7) == Enrolment("fp8", 7, first=True)
    assert await assignments.assign_if_absent("fp8", 1, "ann", "bf16", 9) == Enrolment("fp8", 7, first=False)


@pytest.mark.parametrize(("experiment", "run", "user"), [("fp8", 2, "ann"), ("other", 1, "ann"), ("fp8", 1, "bob")])
async def test_assign_if_absent_keeps_runs_experiments_and_users_apart(
    assignments: AssignmentStore, experiment: str, run: int, user: str
) -> None:
    await assignments.assign_if_absent("fp8", 1, "ann", "fp8", 1)
    assert await assignments.assign_if_absent(experiment, run, user, "bf16", 2) == Enrolment("bf16", 2, first=True)


async def test_assign_if_absent_takes_any_text_as_user_and_a_colon_in_no_harm(assignments: AssignmentStore) -> None:
    for user in ("ünï ☃", "a:b", "x" * 256, "\x00", " "):
        assert (await assignments.assign_if_absent("fp8", 1, user, "arm.with-all_of", 1)).first
        assert not (await assignments.assign_if_absent("fp8", 1, user, "other", 2)).first


async def test_fifty_first_calls_at_once_agree_and_one_of_them_is_first(assignments: AssignmentStore) -> None:
    calls = [assignments.assign_if_absent("fp8", 1, "ann", f"arm{i}", i) for i in range(50)]
    found = await asyncio.gather(*calls)
    assert len({(enrolment.arm, enrolment.epoch) for enrolment in found}) == 1
    assert sum(enrolment.first for enrolment in found) == 1


async def test_read_table_before_any_was_published_is_none(assignments: AssignmentStore) -> None:
    assert await assignments.read_table() is None


async def test_a_table_survives_the_journey_unchanged(
    assignments: AssignmentStore, make_spec: Callable[[], ExperimentSpec]
) -> None:
    table = _table(4, make_spec())
    await assignments.publish(table)
    assert await assignments.read_table() == table


async def test_an_older_table_never_replaces_a_newer_one(assignments: AssignmentStore) -> None:
    await asyncio.gather(*(assignments.publish(_table(version)) for version in (3, 9, 10, 1, 2)))
    await assignments.publish(_table(4))
    assert (await assignments.read_table()) == _table(10)


@pytest.mark.integration
async def test_a_user_costs_few_bytes_and_fields_are_digests(redis_url: str) -> None:
    store = RedisAssignments.from_url(redis_url, prefix="test:layout")
    await store.assign_if_absent("fp8", 1, "a-very-long-and-personal-user-id@example.org", "fp8", 1)
    keys = [key async for key in store._redis.scan_iter(match="test:layout:*")]
    fields = await store._redis.hgetall(keys[0])
    await store._redis.delete(*keys)
    await store.close()
    assert len(keys) == 1
    assert [len(field) for field in fields] == [8]


async def _fails_soon(url: str) -> None:
    store = RedisAssignments.from_url(url)
    for call in (
        lambda: store.assign_if_absent("fp8", 1, "ann", "fp8", 1),
        lambda: store.publish(_table(1)),
        store.read_table,
    ):
        started = time.perf_counter()
        with pytest.raises(StoreUnavailableError, match=r"Redis does not answer: .+"):
            await call()
        assert time.perf_counter() - started < ALLOWED_S
    await store.close()


async def test_a_redis_that_is_down_is_unavailable_at_once(free_port: int) -> None:
    await _fails_soon(f"redis://127.0.0.1:{free_port}")


async def test_a_redis_that_accepts_but_never_answers_is_unavailable_soon() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        await _fails_soon(f"redis://127.0.0.1:{silent.getsockname()[1]}")


async def test_a_redis_that_answers_each_line_late_is_unavailable_soon() -> None:
    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            await asyncio.sleep(0.15)
            writer.write(b"%1\r\n+proto\r\n:3\r\n")
        writer.close()

    async with await asyncio.start_server(answer_late, "127.0.0.1", 0) as server:
        await _fails_soon(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await asyncio.sleep(0.2)


async def test_a_redis_of_another_kind_is_unavailable_with_its_own_words(redis_url: str) -> None:
    store = RedisAssignments.from_url(redis_url, prefix="test:wrongtype")
    await store._redis.set("test:wrongtype:table", "not a hash")
    with pytest.raises(StoreUnavailableError, match="WRONGTYPE"):
        await store.read_table()
    await store._redis.delete("test:wrongtype:table")
    await store.close()
