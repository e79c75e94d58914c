"""The routing table that a gateway routes by: in memory, replaced as a whole, never older than the one before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from experiment.errors import StoreUnavailableError
from experiment.ports import AssignmentStore
from experiment.routing import RoutingTable

_log = logging.getLogger(__name__)


class TableHolder:
    """Polls Redis for the newest table; without Redis derives it from SQL; without both keeps the last one.

    from_sql: derives the table from the stored experiments; blocking, called in a thread.
    """

    def __init__(
        self,
        assignments: AssignmentStore,
        from_sql: Callable[[], RoutingTable],
        first: RoutingTable,
        poll_s: float,
    ) -> None:
        self._assignments, self._from_sql, self._poll_s = assignments, from_sql, poll_s
        self.current = first
        self.redis_is_up = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to poll; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="routing-table")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def refresh(self) -> None:
        """Look once."""
        try:
            newest = await self._assignments.read_table()
            self.redis_is_up = True
        except StoreUnavailableError:
            self.redis_is_up = False
            newest = None
        if newest is None:
            try:
                newest = await asyncio.to_thread(self._from_sql)
            except StoreUnavailableError as error:
                _log.warning("keeping routing table %d: %s", self.current.version, error)
                return
        self.offer(newest)

    def offer(self, table: RoutingTable) -> None:
        """Take the table if it is newer than the current one."""
        if table.version > self.current.version:
            _log.info("routing table %d replaces %d", table.version, self.current.version)
            self.current = table

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.refresh()
            except Exception:  # a gateway that no longer hears of rollbacks would be worse
                _log.exception("keeping routing table %d", self.current.version)
