"""First sights of users: Redis remembers them, a local cache spares the next requests the call."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from experiment.errors import StoreUnavailableError
from experiment.ports import AssignmentStore

UserRun = tuple[str, int, str]
"""(experiment, run, user id)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The arm a user keeps; stale: Redis could not be asked, so it is what the hash says.

    first: Redis saw the user for the first time just now. At most one request of a user and run is told so.
    """

    arm: str
    stale: bool
    first: bool = False


class Enrolments:
    """Who has which arm, bounded in memory. Belongs to one event loop."""

    def __init__(self, store: AssignmentStore, capacity: int, retry_s: float = 1.0) -> None:
        self._store, self._capacity, self._retry_s = store, capacity, retry_s
        self._known: OrderedDict[UserRun, str] = OrderedDict()
        self._owed: OrderedDict[UserRun, tuple[str, int]] = OrderedDict()
        self._down_until_s = 0.0
        self._repaying: asyncio.Task[None] | None = None

    @property
    def owed(self) -> int:
        """First sights that Redis still has to be told."""
        return len(self._owed)

    async def keep(self, experiment: str, run: int, user_id: str, arm: str, epoch: int) -> Kept:
        """The user's arm: Redis's word if it has one, otherwise what it is still owed, otherwise `arm`.

        A dead Redis costs a short timeout a second.
        """
        key = (experiment, run, user_id)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return Kept(known, stale=False)
        arm, epoch = self._owed.get(key, (arm, epoch))
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._down_until_s:
            try:
                enrolment = await self._store.assign_if_absent(experiment, run, user_id, arm, epoch)
            except StoreUnavailableError:
                self._down_until_s = now_s + self._retry_s
            else:
                seen_before = self._owed.pop(key, None) is not None
                self._remember(key, enrolment.arm)
                if self._owed and (self._repaying is None or self._repaying.done()):
                    self._repaying = asyncio.create_task(self._repay(), name="repay-enrolments")
                return Kept(enrolment.arm, stale=False, first=enrolment.first and not seen_before)
        if key not in self._owed and len(self._owed) < self._capacity:
            self._owed[key] = (arm, epoch)
        return Kept(arm, stale=True)

    async def _repay(self) -> None:
        """Tell Redis the first sights that it missed; stops at the first failure, to be called again."""
        while self._owed:
            key, (arm, epoch) = next(iter(self._owed.items()))
            experiment, run, user_id = key
            try:
                enrolment = await self._store.assign_if_absent(experiment, run, user_id, arm, epoch)
            except StoreUnavailableError:
                return
            self._owed.pop(key, None)
            self._remember(key, enrolment.arm)

    def _remember(self, key: UserRun, arm: str) -> None:
        self._known[key] = arm
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
