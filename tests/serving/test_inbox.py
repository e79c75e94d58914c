"""Group commit: everybody who waits is told, together and the truth; the watermark never passes who still waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from experiment.events import Interaction, Kind, Record
from serving.errors import SpoolFullError
from serving.inbox import Inbox
from tests.serving.waiting import until

START = datetime(2026, 11, 23, tzinfo=UTC)
STAMPING_S = 0.05


class FakeSpool:
    """Keeps groups in memory; `gate` holds the disk back, `error` is what it answers with."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def append(self, records: Sequence[Record]) -> None:
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.groups.append([record.event_id for record in records if isinstance(record, Interaction)])


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.now_s)


@pytest.fixture
def spool() -> FakeSpool:
    return FakeSpool()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def inbox(spool: FakeSpool, clock: Clock) -> AsyncIterator[Inbox]:
    made = Inbox(spool, clock)  # type: ignore[arg-type] # a fake has no folder
    made.start()
    yield made
    spool.gate.set()
    await asyncio.wait_for(made.stop(), 5)


def event(name: object, at_s: float = 100.0) -> Interaction:
    at = START + timedelta(seconds=at_s)
    return Interaction(f"e{name}", Kind.CLICK, "r1", "u1", "i1", 0, 1.0, at, at)


def low_s(inbox: Inbox) -> float:
    return (inbox.low_watermark() - START).total_seconds()


async def test_accept_returns_after_the_records_are_on_the_disk(inbox: Inbox, spool: FakeSpool) -> None:
    spool.gate.clear()
    waiting = asyncio.create_task(inbox.accept([event(1), event(2)]))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    spool.gate.set()
    await asyncio.wait_for(waiting, 5)
    assert spool.groups == [["e1", "e2"]]


async def test_nothing_is_accepted_at_once(inbox: Inbox, spool: FakeSpool) -> None:
    await inbox.accept([])
    assert spool.groups == []


async def test_all_who_wait_share_one_write_in_order_of_arrival(inbox: Inbox, spool: FakeSpool) -> None:
    spool.gate.clear()
    first = asyncio.create_task(inbox.accept([event("first")]))
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(inbox.accept([event(n)])) for n in range(300)]
    await asyncio.sleep(0.02)
    spool.gate.set()
    await asyncio.wait_for(asyncio.gather(first, *others), 5)
    assert spool.groups == [["efirst"], [f"e{n}" for n in range(300)]]


async def test_a_group_is_bounded_and_a_batch_is_never_split(inbox: Inbox, spool: FakeSpool) -> None:
    spool.gate.clear()
    batches = [[event(f"{batch}.{n}") for n in range(900)] for batch in range(5)]
    tasks = [asyncio.create_task(inbox.accept(batch)) for batch in batches]
    await asyncio.sleep(0.02)
    spool.gate.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert [len(group) for group in spool.groups] == [2700, 1800]


async def test_a_full_spool_fails_the_whole_group_and_nobody_after_it(inbox: Inbox, spool: FakeSpool) -> None:
    spool.error = SpoolFullError("full")
    failed = await asyncio.gather(*(inbox.accept([event(n)]) for n in range(20)), return_exceptions=True)
    assert [type(error) for error in failed] == [SpoolFullError] * 20
    assert len({id(error) for error in failed}) == 20, "each waiter has an exception of their own"
    spool.error = None
    await inbox.accept([event("later")])
    assert spool.groups == [["elater"]]


async def test_a_disk_that_breaks_in_an_unforeseen_way_hangs_nobody(inbox: Inbox, spool: FakeSpool) -> None:
    spool.error = RuntimeError("unforeseen")
    with pytest.raises(SpoolFullError, match="unforeseen"):
        await asyncio.wait_for(inbox.accept([event(1)]), 5)
    spool.error = None
    await asyncio.wait_for(inbox.accept([event(2)]), 5)
    assert spool.groups == [["e2"]]


async def test_a_client_that_gave_up_harms_nobody(inbox: Inbox, spool: FakeSpool) -> None:
    spool.gate.clear()
    tasks = [asyncio.create_task(inbox.accept([event(n)])) for n in range(3)]
    await asyncio.sleep(0.02)
    tasks[1].cancel()
    spool.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]


async def test_stop_writes_what_is_queued(spool: FakeSpool, clock: Clock) -> None:
    inbox = Inbox(spool, clock)  # type: ignore[arg-type]
    inbox.start()
    spool.gate.clear()
    tasks = [asyncio.create_task(inbox.accept([event(n)])) for n in range(5)]
    await asyncio.sleep(0.02)
    stopping = asyncio.create_task(inbox.stop())
    await asyncio.sleep(0.02)
    assert not stopping.done()
    spool.gate.set()
    await asyncio.wait_for(asyncio.gather(stopping, *tasks), 5)
    assert sum(map(len, spool.groups)) == 5


async def test_the_watermark_follows_the_clock_while_nothing_waits(inbox: Inbox, clock: Clock) -> None:
    assert low_s(inbox) == pytest.approx(100 - STAMPING_S)
    clock.now_s = 107
    assert low_s(inbox) == pytest.approx(107 - STAMPING_S)


async def test_the_watermark_stays_below_the_oldest_record_that_waits(
    inbox: Inbox, spool: FakeSpool, clock: Clock
) -> None:
    spool.gate.clear()
    first = asyncio.create_task(inbox.accept([event(1, 100.0)]))
    await asyncio.sleep(0.02)
    clock.now_s = 101.0
    second = asyncio.create_task(inbox.accept([event(2, 101.0)]))
    third = asyncio.create_task(inbox.accept([event(3, 100.97)]))  # stamped before the second, queued behind it
    await asyncio.sleep(0.02)
    clock.now_s = 150.0
    assert low_s(inbox) <= 100.0
    seen: list[float] = []
    append = spool.append

    def slow(records: Sequence[Record]) -> None:
        seen.append(low_s(inbox))
        append(records)

    spool.append = slow  # type: ignore[method-assign]
    spool.gate.set()
    await asyncio.gather(first, second, third)
    assert seen
    assert max(seen) <= 100.97, "while the second group is written, its oldest record holds the watermark"
    await until(lambda: low_s(inbox) == pytest.approx(150 - STAMPING_S))


async def test_the_watermark_never_falls_and_never_passes_an_unacknowledged_record(
    inbox: Inbox, spool: FakeSpool, clock: Clock
) -> None:
    waiting: dict[int, float] = {}
    said: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            before = dict(waiting)
            low = low_s(inbox)
            said.append(low)
            assert all(low <= at for number, at in before.items() if number in waiting)

    async def send(number: int) -> None:
        stamped_s = clock.now_s = clock.now_s + 0.001
        await asyncio.sleep(0)
        waiting[number] = stamped_s
        await inbox.accept([event(number, stamped_s)])
        del waiting[number]

    watching = asyncio.create_task(asyncio.to_thread(watch))
    for start in range(0, 400, 20):
        await asyncio.gather(*(send(number) for number in range(start, start + 20)))
    done.set()
    await watching
    assert said == sorted(said)
    assert sum(map(len, spool.groups)) == 400
