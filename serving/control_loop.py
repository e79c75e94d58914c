"""The gate's clock: looks at every running experiment when its look is due, and keeps the published table up to date.

Nothing here decides. A dead SQL store or Redis stops looks, never traffic: gateways keep the last table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from experiment.controller import look, record_failure, table_of
from experiment.errors import IllegalTransitionError, StoreUnavailableError, VersionConflictError
from experiment.ports import AssignmentStore, ExperimentRepository
from experiment.state import DecisionRow, State

_log = logging.getLogger(__name__)


class ControlLoop:
    """One per service. `tick` does what is due at `now`; `run` ticks until `stop`.

    Two of them at once do no harm: every write names the version that it read.
    """

    def __init__(
        self,
        repository: ExperimentRepository,
        assignments: AssignmentStore,
        default_variant: str,
        clock: Callable[[], datetime],
        code_version: str,
        tick_s: float = 0.5,
    ) -> None:
        self._repository, self._assignments = repository, assignments
        self._default_variant, self._clock = default_variant, clock
        self._code_version, self._tick_s = code_version, tick_s
        self._last_look: dict[str, datetime] = {}
        self._stopping = asyncio.Event()
        self.last_tick: datetime | None = None

    async def run(self) -> None:
        """Tick until `stop`; whatever a tick dies of is logged, and the next one tries again."""
        while not self._stopping.is_set():
            try:
                await self.tick()
                self.last_tick = self._clock()
            except StoreUnavailableError as error:
                _log.warning("no look: %s", error)
            except Exception:
                _log.exception("a tick failed")
            try:
                await asyncio.wait_for(self._stopping.wait(), self._tick_s)
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Let `run` end after the current tick."""
        self._stopping.set()

    async def tick(self) -> list[DecisionRow]:
        """Look where a look is due, then publish the table if a newer one follows. Raises StoreUnavailableError."""
        decisions = await asyncio.to_thread(self._looks)
        await self._publish_if_stale()
        return decisions

    def _looks(self) -> list[DecisionRow]:
        decisions = []
        for row in self._repository.list():
            if row.state not in {State.RUNNING, State.PAUSED}:
                continue
            now = self._clock()
            last = self._last_look.get(row.key)
            if last is not None and now - last < timedelta(seconds=row.spec.look_interval_s):
                continue
            self._last_look[row.key] = now
            decision = self._look(row.key, now)
            if decision is not None:
                decisions.append(decision)
        return decisions

    def _look(self, key: str, now: datetime) -> DecisionRow | None:
        try:
            return look(self._repository, key, now, self._code_version)
        except (VersionConflictError, IllegalTransitionError) as error:
            _log.info("somebody was faster: %s", error)
            return None
        except StoreUnavailableError:
            raise
        except Exception as error:
            _log.exception("the look at %r failed", key)
            return record_failure(self._repository, key, error, now, self._code_version)

    async def _publish_if_stale(self) -> None:
        """Also finishes a change whose author died before publishing it, and fills a Redis that lost its data."""
        version = await asyncio.to_thread(self._repository.routing_version)
        try:
            published = await self._assignments.read_table()
            if published is None or published.version < version:
                table = await asyncio.to_thread(table_of, self._repository, self._default_variant)
                await self._assignments.publish(table)
                _log.info("published routing table %d", table.version)
        except StoreUnavailableError as error:
            _log.warning("the routing table waits: %s", error)
