"""The other arm's answer to a user's first request, asked behind the back of the answer and compared with it.

Whatever happens here, no answer is later or worse for it: a comparison that cannot be made is left out, and the user's
trigger stays unknown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from experiment.events import comparison
from serving.breaker import Breaker
from serving.client import Item, VariantClient
from serving.errors import SpoolFullError, VariantError
from serving.inbox import Inbox
from serving.question import Question

_log = logging.getLogger(__name__)


class Shadow:
    """Comparisons under way, at most `limit` of them. Belongs to one event loop.

    skipped: comparisons left out because too many were under way, or because the other arm was cut off or failed. The
    breaker of the other arm is read and never moved: users must not lose an arm over questions that nobody asked.
    """

    def __init__(
        self, client: VariantClient, inbox: Inbox, clock: Callable[[], datetime], limit: int, timeout_s: float
    ) -> None:
        self._client, self._inbox, self._clock = client, inbox, clock
        self._limit, self._timeout_s = limit, timeout_s
        self._under_way: set[asyncio.Task[None]] = set()
        self.skipped = 0

    def compare(
        self,
        request_id: str,
        user_id: str,
        shown: Sequence[Item],
        other: str,
        breaker: Breaker,
        question: Question,
    ) -> None:
        """Begin to compare the slate that was shown with that of the variant `other`; returns at once."""
        if breaker.is_open or len(self._under_way) >= self._limit:
            self.skipped += 1
            return
        work = self._compare(request_id, user_id, shown, other, question)
        task = asyncio.get_running_loop().create_task(work, name=f"shadow-{request_id}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def drain(self) -> None:
        """Wait for what is under way, as long as a variant may take; ends what takes longer."""
        if self._under_way:
            _, unfinished = await asyncio.wait(self._under_way, timeout=self._timeout_s)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _compare(
        self, request_id: str, user_id: str, shown: Sequence[Item], other: str, question: Question
    ) -> None:
        try:
            items = await self._client.recommend(other, question, self._timeout_s)
            differs = [item.item_id for item in items] != [item.item_id for item in shown]
            await self._inbox.accept([comparison(request_id, user_id, differs, self._clock())])
        except (VariantError, SpoolFullError):
            self.skipped += 1
        except Exception:
            self.skipped += 1
            _log.exception("the comparison of request %s failed in an unforeseen way", request_id)
