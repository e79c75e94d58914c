"""The routing table in memory: only ever newer, from Redis, else from SQL, else the one that was there."""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.errors import StoreUnavailableError
from experiment.routing import RoutingTable
from experiment.store.memory import MemoryAssignments
from serving.table import TableHolder
from tests.serving.waiting import until


def table(version: int, variant: str = "bf16") -> RoutingTable:
    return RoutingTable(version, variant)


class Sources(MemoryAssignments):
    """Redis and SQL; an exception in a place of a table is what that store answers with."""

    def __init__(self) -> None:
        super().__init__()
        self.redis: RoutingTable | Exception | None = None
        self.sql: RoutingTable | Exception = table(0)
        self.reads = 0

    async def read_table(self) -> RoutingTable | None:
        self.reads += 1
        if isinstance(self.redis, Exception):
            raise self.redis
        return self.redis

    def from_sql(self) -> RoutingTable:
        if isinstance(self.sql, Exception):
            raise self.sql
        return self.sql


AWAY = StoreUnavailableError("away")


@pytest.fixture
def sources() -> Sources:
    return Sources()


@pytest.fixture
def holder(sources: Sources) -> TableHolder:
    return TableHolder(sources, sources.from_sql, table(-1), poll_s=0.001)


@pytest.mark.parametrize(
    ("redis", "sql", "version", "up"),
    [
        (table(5), table(9), 5, True),
        (None, table(9), 9, True),
        (AWAY, table(9), 9, False),
        (None, AWAY, -1, True),
        (AWAY, AWAY, -1, False),
    ],
)
async def test_the_table_comes_from_the_first_source_that_has_one(
    sources: Sources, holder: TableHolder, redis: Any, sql: Any, version: int, up: bool
) -> None:
    sources.redis, sources.sql = redis, sql
    await holder.refresh()
    assert (holder.current.version, holder.redis_is_up) == (version, up)


async def test_an_older_table_is_never_taken(sources: Sources, holder: TableHolder) -> None:
    sources.redis = table(5, "new")
    await holder.refresh()
    for stale in (table(4, "old"), table(5, "other")):
        sources.redis = stale
        await holder.refresh()
        assert holder.current == table(5, "new")


async def test_redis_is_seen_to_be_back(sources: Sources, holder: TableHolder) -> None:
    sources.redis = AWAY
    await holder.refresh()
    sources.redis = None
    await holder.refresh()
    assert holder.redis_is_up


@given(st.lists(st.integers(-3, 20), max_size=30))
def test_versions_only_grow_in_whatever_order_tables_come(versions: list[int]) -> None:
    sources = Sources()
    holder = TableHolder(sources, sources.from_sql, table(-1), 1.0)
    seen = []
    for version in versions:
        holder.offer(table(version))
        seen.append(holder.current.version)
    assert seen == list(accumulate(versions, max, initial=-1))[1:]


async def test_polling_brings_new_tables_until_it_is_stopped(sources: Sources, holder: TableHolder) -> None:
    sources.redis = table(1)
    holder.start()
    await until(lambda: holder.current.version == 1)
    sources.redis = table(2)
    await until(lambda: holder.current.version == 2)
    await holder.stop()
    reads = sources.reads
    await asyncio.sleep(0.02)
    assert sources.reads == reads


@pytest.mark.parametrize("error", [AWAY, KeyError("entries"), ValueError("no JSON")], ids=repr)
async def test_polling_outlives_whatever_a_store_answers(
    sources: Sources, holder: TableHolder, error: Exception
) -> None:
    """A table of a foreign version must not leave the gateway deaf to rollbacks."""
    sources.redis = sources.sql = error
    holder.start()
    await until(lambda: sources.reads > 3)
    sources.redis = table(7)
    await until(lambda: holder.current.version == 7)
    await holder.stop()


async def test_stopping_what_never_started_is_harmless(holder: TableHolder) -> None:
    await holder.stop()
