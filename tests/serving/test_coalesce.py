"""Everybody gets their own answer, groups grow only where there is a crowd, and who has gone is not asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.coalesce import Coalescer, CrowdedError


class Place:
    """Answers each number by its square; a negative one is a failure of its own."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.patience: list[float] = []

    async def send(self, questions: Sequence[int], timeout_s: float) -> Sequence[int | Exception]:
        self.groups.append(list(questions))
        self.patience.append(timeout_s)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [ValueError(str(one)) if one < 0 else one * one for one in questions]


async def test_alone_a_question_leaves_at_once() -> None:
    place = Place()
    asked = Coalescer(place.send, calls=2, most=8, room=100)
    assert [await asked.ask(one, 1.0) for one in range(3)] == [0, 1, 4]
    assert place.groups == [[0], [1], [2]]


async def test_in_a_crowd_what_has_gathered_travels_together_in_its_order() -> None:
    place = Place()
    place.gate.clear()
    asked = Coalescer(place.send, calls=1, most=4, room=100)
    first = asyncio.create_task(asked.ask(0, 1.0))
    await asyncio.sleep(0.01)
    rest = [asyncio.create_task(asked.ask(one, 1.0)) for one in range(1, 7)]
    await asyncio.sleep(0.01)
    place.gate.set()
    assert await asyncio.gather(first, *rest) == [one * one for one in range(7)]
    assert place.groups == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_failed_call_fails_its_own_questions_only() -> None:
    place = Place()
    asked = Coalescer(place.send, calls=1, most=8, room=100)
    place.error = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        await asked.ask(1, 1.0)
    place.error = None
    found = await asyncio.gather(*(asked.ask(one, 1.0) for one in (2, -3, 4)), return_exceptions=True)
    assert [str(one) for one in found] == ["4", "-3", "16"]


async def test_who_has_gone_is_not_asked_for() -> None:
    place = Place()
    place.gate.clear()
    asked = Coalescer(place.send, calls=1, most=8, room=100)
    first = asyncio.create_task(asked.ask(1, 1.0))
    await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await asked.ask(2, 0.02)
    left = asyncio.create_task(asked.ask(3, 1.0))
    await asyncio.sleep(0.01)
    left.cancel()
    last = asyncio.create_task(asked.ask(4, 1.0))
    await asyncio.sleep(0.01)
    place.gate.set()
    assert await asyncio.gather(first, last) == [1, 16]
    assert place.groups == [[1], [4]]


async def test_a_call_waits_for_the_most_patient() -> None:
    place = Place()
    place.gate.clear()
    asked = Coalescer(place.send, calls=1, most=8, room=100)
    tasks = [asyncio.create_task(asked.ask(one, patience_s)) for one, patience_s in ((1, 0.5), (2, 2.0), (3, 9.0))]
    await asyncio.sleep(0.01)
    place.gate.set()
    await asyncio.gather(*tasks)
    assert place.groups == [[1, 2, 3]]
    assert 8.0 < place.patience[0] <= 9.0


async def test_too_many_are_told_at_once() -> None:
    place = Place()
    place.gate.clear()
    asked = Coalescer(place.send, calls=1, most=2, room=3)
    tasks = [asyncio.create_task(asked.ask(one, 1.0)) for one in range(7)]
    await asyncio.sleep(0.01)
    assert [task.done() for task in tasks] == [False] * 5 + [True] * 2
    assert all(isinstance(task.exception(), CrowdedError) for task in tasks[5:])
    place.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_closing_leaves_nobody_waiting() -> None:
    place = Place()
    place.gate.clear()
    asked = Coalescer(place.send, calls=1, most=1, room=100)
    tasks = [asyncio.create_task(asked.ask(one, 60.0)) for one in range(3)]
    await asyncio.sleep(0.01)
    await asked.close()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1.0)
    assert all(isinstance(one, asyncio.CancelledError) for one in found)


questions = st.lists(st.tuples(st.integers(-5, 50), st.integers(0, 3)), max_size=40)


@settings(max_examples=50, deadline=None)
@given(questions, st.integers(1, 4), st.integers(1, 6))
def test_everybody_gets_their_own_answer(asked: list[tuple[int, int]], calls: int, most: int) -> None:
    under_way, highest = 0, 0

    async def send(group: Sequence[int], _timeout_s: float) -> Sequence[int | Exception]:
        nonlocal under_way, highest
        under_way += 1
        highest = max(highest, under_way)
        assert len(group) <= most
        for _ in range(abs(group[0]) % 4):
            await asyncio.sleep(0)
        under_way -= 1
        return [ValueError(str(one)) if one < 0 else one * one for one in group]

    async def run() -> None:
        place = Coalescer(send, calls, most, 1000)

        async def one(number: int, ticks: int) -> None:
            for _ in range(ticks):
                await asyncio.sleep(0)
            if number < 0:
                with pytest.raises(ValueError, match=str(number)):
                    await place.ask(number, 5.0)
            else:
                assert await place.ask(number, 5.0) == number * number

        await asyncio.gather(*(one(*question) for question in asked))

    asyncio.run(run())
    assert highest <= calls
