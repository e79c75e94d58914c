"""The gateway's side of the spool: group commit for the event loop, one fdatasync for all that wait at the moment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from experiment.events import Record
from serving.errors import SpoolFullError
from serving.spool import Spool

_STAMPING = timedelta(milliseconds=50)
"""A record is stamped at most this long before it is queued."""

_MAX_GROUP = 2000

_log = logging.getLogger(__name__)

Waiting = tuple[Sequence[Record], "asyncio.Future[None]"]


class Inbox:
    """Makes records durable. `accept` belongs to the event loop, `low_watermark` may be called from any thread."""

    def __init__(self, spool: Spool, clock: Callable[[], datetime]) -> None:
        self._spool, self._clock = spool, clock
        self._queue: deque[Waiting] = deque()
        self._writing: Sequence[Waiting] = ()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._oldest: datetime | None = None

    def start(self) -> None:
        """Begin to write; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="inbox")

    async def stop(self) -> None:
        """Write what is queued, then end."""
        while self._queue or self._writing:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def accept(self, records: Sequence[Record]) -> None:
        """Returns once the records are on the disk. Raises SpoolFullError; then none of them is kept."""
        if not records:
            return
        done = asyncio.get_running_loop().create_future()
        oldest = min(record.received_at for record in records)
        self._oldest = oldest if self._oldest is None else min(self._oldest, oldest)
        self._queue.append((records, done))
        self._wake.set()
        await done

    def low_watermark(self) -> datetime:
        """Every record received before this time is in the spool, or was refused."""
        now = self._clock() - _STAMPING
        oldest = self._oldest
        return now if oldest is None else min(now, oldest)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group: list[Waiting] = []
                size = 0
                while self._queue and size < _MAX_GROUP:
                    group.append(self._queue.popleft())
                    size += len(group[-1][0])
                self._writing = group
                await self._write(group)
                self._writing = ()
                self._oldest = min((record.received_at for waits, _ in self._queue for record in waits), default=None)

    async def _write(self, group: Sequence[Waiting]) -> None:
        records = [record for waiting, _ in group for record in waiting]
        try:
            await asyncio.to_thread(self._spool.append, records)
        except Exception as error:
            if not isinstance(error, SpoolFullError):
                _log.exception("the spool failed in an unforeseen way; its callers are told to try again")
            for _, done in group:
                if not done.done():
                    done.set_exception(SpoolFullError(str(error)))
            return
        for _, done in group:
            if not done.done():
                done.set_result(None)
