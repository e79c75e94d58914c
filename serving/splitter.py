"""The splitter: from a user to an arm to an answer, with control behind every arm.

One request: route (pure, in memory) → at first sight one Redis script → one call to the arm → one durable record of it.
Where the experiment asks for it, the other arm answers a first request too, behind the answer's back (`Shadow`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from experiment.events import Served
from experiment.routing import Route, RoutingTable, route
from serving.breaker import Breaker
from serving.client import Item, VariantClient
from serving.enrol import Enrolments
from serving.errors import NoAnswerError, SpoolFullError, VariantError
from serving.inbox import Inbox
from serving.question import Question
from serving.request_id import RequestSigner
from serving.settings import Settings
from serving.shadow import Shadow

STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Answer:
    """A slate, and how it came about. served_arm is who answered; fallback says why it was not the assigned one."""

    request_id: str
    items: Sequence[Item]
    route: Route
    served_variant: str
    served_arm: str | None
    fallback: str | None
    latency_ms: float
    table_version: int


class Splitter:
    """Answers recommendation requests. Belongs to one event loop; `table` is read anew for each request."""

    def __init__(
        self,
        table: Callable[[], RoutingTable],
        enrolments: Enrolments,
        client: VariantClient,
        inbox: Inbox,
        signer: RequestSigner,
        settings: Settings,
        clock: Callable[[], datetime],
        observe: Callable[[Served], None] = lambda _served: None,
    ) -> None:
        self._table, self._enrolments, self._client = table, enrolments, client
        self._inbox, self._signer, self._settings = inbox, signer, settings
        self._clock, self._observe = clock, observe
        self._breakers: dict[str, Breaker] = defaultdict(Breaker)
        self.shadow = Shadow(client, inbox, clock, settings.shadow_limit, settings.variant_timeout_s)
        self.lost_exposures = 0

    async def recommend(self, user_id: str, question: Question) -> Answer:
        """Items for the user. Raises InvalidUserError, and NoAnswerError when control cannot answer either."""
        started_s = time.perf_counter()
        table = self._table()
        chosen, first = await self._sticky(table, route(table, user_id), user_id)
        request_id = self._signer.issue(user_id, self._clock())
        try:
            items, variant, fallback = await self._ask(chosen, question, started_s)
        except VariantError as error:
            await self._record(table, chosen, request_id, user_id, chosen.variant, None, None, question, started_s)
            raise NoAnswerError(f"no variant answered: {error}") from error
        latency_ms = await self._record(
            table, chosen, request_id, user_id, variant, fallback, items, question, started_s
        )
        if first and fallback is None and (other := _shadowed(table, chosen)) is not None:
            self.shadow.compare(request_id, user_id, items, other, self._breakers[other], question)
        return Answer(
            request_id=request_id,
            items=items,
            route=chosen,
            served_variant=variant,
            served_arm=_arm_of(table, chosen, variant),
            fallback=fallback,
            latency_ms=latency_ms,
            table_version=table.version,
        )

    async def _sticky(self, table: RoutingTable, chosen: Route, user_id: str) -> tuple[Route, bool]:
        """(the route, whether this is the user's first request of the run).

        The arm that Redis keeps outranks the table's, as long as the experiment still has it.
        """
        if chosen.experiment is None or chosen.run is None or chosen.arm is None or chosen.forced:
            return chosen, False
        kept = await self._enrolments.keep(chosen.experiment, chosen.run, user_id, chosen.arm, table.version)
        if kept.stale:
            return replace(chosen, reason=STALE), False
        entry = table.entry(chosen.experiment)
        arm = None if entry is None or kept.arm == chosen.arm else entry.arm(kept.arm)
        return (chosen if arm is None else replace(chosen, arm=arm.arm, variant=arm.variant)), kept.first

    async def _ask(self, chosen: Route, question: Question, started_s: float) -> tuple[list[Item], str, str | None]:
        """(items, who answered, why not the assigned one). Raises VariantError when nobody did."""
        try:
            return await self._call(chosen.variant, question, self._settings.variant_timeout_s), chosen.variant, None
        except VariantError as error:
            if chosen.variant == chosen.control_variant:
                raise
            left_s = self._settings.answer_timeout_s - (time.perf_counter() - started_s)
            items = await self._call(chosen.control_variant, question, max(left_s, 0.1))
            return items, chosen.control_variant, error.kind

    async def _call(self, variant: str, question: Question, timeout_s: float) -> list[Item]:
        breaker = self._breakers[variant]
        if not breaker.allows(time.monotonic()):
            raise VariantError(variant, "breaker_open", "it failed several times in a row")
        try:
            items = await self._client.recommend(variant, question, timeout_s)
        except VariantError as error:
            if error.kind == "refused":  # one user's question must not cut the variant off from all others
                breaker.succeeded()
            elif not error.counted:
                error.counted = True
                breaker.failed(time.monotonic())
            raise
        breaker.succeeded()
        return items

    async def _record(
        self,
        table: RoutingTable,
        chosen: Route,
        request_id: str,
        user_id: str,
        variant: str,
        fallback: str | None,
        items: Sequence[Item] | None,
        question: Question,
        started_s: float,
    ) -> float:
        """Make the exposure durable before the answer leaves, so that no click can ever be without its request.

        items None: nobody answered.
        """
        latency_ms = 1000 * (time.perf_counter() - started_s)
        entry = None if chosen.experiment is None else table.entry(chosen.experiment)
        logged = _logged(question, items, self._settings.log_history) if items and self._settings.log_slates else {}
        served = Served(
            request_id=request_id,
            user_id=user_id,
            experiment=chosen.experiment,
            run=chosen.run,
            arm=chosen.arm,
            bucket=chosen.bucket,
            phase=chosen.phase,
            served_variant=variant,
            table_version=table.version,
            reason=chosen.reason,
            fallback=fallback,
            failed=items is None,
            slow=entry is not None and latency_ms > entry.latency_objective_ms,
            forced=chosen.forced,
            latency_ms=latency_ms,
            received_at=self._clock(),
            **logged,
        )
        self._observe(served)
        try:
            await self._inbox.accept([served])
        except SpoolFullError:
            self.lost_exposures += 1  # the user gets the slate all the same; its events will be orphans
        return latency_ms


def _logged(question: Question, items: Sequence[Item], newest: int) -> dict[str, Any]:
    """What a request keeps for post-training. A log probability to the sixth decimal is better than a 16-bit model
    knows it."""
    return {
        "history": tuple(question.history[-newest:]),
        "liked": tuple(question.liked[-newest:]),
        "profile": tuple(question.profile.items()),
        "slate": tuple((item.item_id, round(item.score, 6)) for item in items),
    }


def _shadowed(table: RoutingTable, chosen: Route) -> str | None:
    """The variant of the other arm, where the experiment compares slates."""
    entry = None if chosen.experiment is None else table.entry(chosen.experiment)
    if entry is None or not entry.shadow:
        return None
    return next((arm.variant for arm in entry.arms if arm.arm != chosen.arm), None)


def _arm_of(table: RoutingTable, chosen: Route, variant: str) -> str | None:
    entry = None if chosen.experiment is None else table.entry(chosen.experiment)
    if entry is None:
        return None
    return next((arm.arm for arm in entry.arms if arm.variant == variant), None)
