"""Questions that wait for the same place travel together.

A call costs the place as much for one question as for thirty, and what arrives one by one is computed in small batches.
So a few calls are under way at a time, and each takes everything that has gathered since: alone, a question leaves at
once; in a crowd the groups grow by themselves, and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

Send = Callable[[Sequence[Q], float], Awaitable[Sequence[A | Exception]]]
"""(questions, seconds to wait at most) -> one answer each, or why that question has none. Raises what befell all."""


class CrowdedError(Exception):
    """Too many wait already."""


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Q, A]):
    question: Q
    until_s: float
    answer: asyncio.Future[A]


class Coalescer(Generic[Q, A]):
    """At most `calls` under way, of at most `most` questions each; `room` more may wait. Of one event loop."""

    def __init__(self, send: Send[Q, A], calls: int, most: int, room: int) -> None:
        self._send, self._calls, self._most = send, calls, most
        self._room = room + calls * most  # those of one instant wait until the calls begin
        self._waiting: deque[_Waiting[Q, A]] = deque()
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself holds them weakly

    async def ask(self, question: Q, timeout_s: float) -> A:
        """The answer. Raises CrowdedError, TimeoutError, or what `send` said of the question or of its whole call."""
        if len(self._waiting) >= self._room:
            raise CrowdedError(f"{self._room} questions wait already")
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(question, time.monotonic() + timeout_s, answer))
        if self._under_way < self._calls:
            self._under_way += 1
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        async with asyncio.timeout(timeout_s):
            return await answer

    async def close(self) -> None:
        """Give up the calls that are under way; who still waits is told so by CancelledError."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiting in self._waiting:
            waiting.answer.cancel()

    async def _work(self) -> None:
        """One call after the other until nobody waits. Between finding that out and saying so nothing else runs."""
        try:
            while group := self._group():
                try:
                    await self._call(group)
                finally:
                    for waiting in group:
                        waiting.answer.cancel()  # only where the call was given up: all others have their answer
        finally:
            self._under_way -= 1

    def _group(self) -> list[_Waiting[Q, A]]:
        """Who has waited longest, but for those that have gone."""
        group: list[_Waiting[Q, A]] = []
        while self._waiting and len(group) < self._most:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                group.append(waiting)
        return group

    async def _call(self, group: list[_Waiting[Q, A]]) -> None:
        patience_s = max(waiting.until_s for waiting in group) - time.monotonic()
        try:
            answers = await self._send([waiting.question for waiting in group], max(patience_s, 0.001))
        except Exception as error:
            answers = [error] * len(group)
        for waiting, answer in zip(group, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
