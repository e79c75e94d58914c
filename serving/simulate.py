"""Live traffic: simulated visitors ask for slates and report what they did, through HTTP only.

The client knows people and items. Of experiments it only writes down which arm an answer names, so that it can be
checked afterwards that nobody changed theirs; nothing it does depends on that.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from serving.delivery import Delivery, check_allowed, events_of, json_object
from serving.errors import ConfigurationError
from serving.visitors import Visitor, Visitors

SENDERS = 2
PROGRESS_EVERY_S = 0.25
TIMEOUT_S = 15.0
MAX_HISTORY = 512
"""What the API takes."""


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """How much traffic. visitors None: ever new ones, until `should_stop`. rate_per_s: slates, the events apart.

    concurrency: visitors on the page at a time; one of them stays for about
    requests_per_visitor · concurrency / rate_per_s seconds. seed: of the event ids. first_visitor: its number.
    """

    visitors: int | None = 1000
    requests_per_visitor: int = 2
    k: int = 10
    rate_per_s: float = 100.0
    concurrency: int = 16
    seed: int = 7
    first_visitor: int = 0

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("requests_per_visitor", "k", "concurrency")}
        counts["visitors"] = 1 if self.visitors is None else self.visitors
        for name, value in counts.items():
            if value < 1:
                raise ConfigurationError(f"{name}: must be at least 1, got {value}")
        if not 0 < self.rate_per_s < float("inf"):
            raise ConfigurationError(f"rate_per_s: must be positive and finite, got {self.rate_per_s}")
        if self.first_visitor < 0:
            raise ConfigurationError(f"first_visitor: must not be negative, got {self.first_visitor}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the traffic is; `visitors` have left, of `of` (None: no end)."""

    visitors: int
    of: int | None
    requests: int
    failures: int
    accepted: int
    elapsed_s: float


@dataclass(slots=True)
class TrafficReport:
    """What was sent and what became of it: sent = accepted + the sum of refused, always.

    requests: slates asked for; failures of them brought none, by reason in failed. refused: events by reason, those
    among them that could not be delivered. arms_by_user: the distinct arms that answers named, in order; the users
    outside every experiment are not in it. latencies_ms: of the answered requests for slates.
    """

    visitors: int = 0
    requests: int = 0
    failures: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    arms_by_user: dict[str, tuple[str, ...]] = field(default_factory=dict)
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    elapsed_s: float = 0.0

    @property
    def moved(self) -> list[str]:
        """Users whom answers put into more than one arm; nobody, within one run of an experiment."""
        return [user for user, arms in self.arms_by_user.items() if len(arms) > 1]


class TokenBucket:
    """At most `rate` a second and `burst` at once; who asks first is served first."""

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap, self._burst_s, self._clock = 1 / rate_per_s, (burst - 1) / rate_per_s, clock
        self._next = clock() - self._burst_s

    def delay_s(self) -> float:
        """Take a token: how long to wait until it is there."""
        now = self._clock()
        due = max(self._next, now - self._burst_s)
        self._next = due + self._gap
        return max(0.0, due - now)

    async def take(self) -> None:
        """Wait for a token."""
        if delay := self.delay_s():
            await asyncio.sleep(delay)


async def simulate(
    base_url: str,
    token: str,
    visitors: Visitors,
    options: TrafficOptions,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrafficReport:
    """Send visitors, in order, until there are no more or `should_stop` says so; then deliver every event.

    should_stop is asked before each visitor and must answer at once. Raises ApiError when the token is refused.
    """
    if options.visitors is None and should_stop is None:
        raise ConfigurationError("visitors: None needs a should_stop, or the traffic never ends")
    connector = aiohttp.TCPConnector(limit=options.concurrency + SENDERS)
    headers = {"Authorization": f"Bearer {token}"}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(base_url, connector=connector, headers=headers, timeout=timeout) as session:
        traffic = _Traffic(session, visitors, options, should_stop or (lambda: False))
        return await traffic.run(on_progress or (lambda _: None))


class _Traffic:
    """One run: `concurrency` pages that visitors come to, and senders that report in batches."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        visitors: Visitors,
        options: TrafficOptions,
        should_stop: Callable[[], bool],
    ) -> None:
        self._session, self._visitors, self._options = session, visitors, options
        self._should_stop = should_stop
        self._report = TrafficReport()
        self._bucket = TokenBucket(options.rate_per_s, burst=max(1.0, options.rate_per_s / 20))
        self._delivery = Delivery(session)
        self._started = time.monotonic()

    async def run(self, on_progress: Callable[[Progress], None]) -> TrafficReport:
        """Visits, then the rest of the events. The first error ends everything."""
        options = self._options
        count = itertools.count() if options.visitors is None else range(options.visitors)
        numbers = (options.first_visitor + i for i in count)
        try:
            async with asyncio.TaskGroup() as all_tasks:
                helpers = [all_tasks.create_task(self._delivery.deliver()) for _ in range(SENDERS)]
                helpers.append(all_tasks.create_task(self._tell(on_progress)))
                async with asyncio.TaskGroup() as pages:
                    for _ in range(options.concurrency):
                        pages.create_task(self._receive(numbers))
                await self._delivery.join()
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        on_progress(self._progress())
        report, delivery = self._report, self._delivery
        report.elapsed_s = time.monotonic() - self._started
        report.sent, report.accepted = delivery.sent, delivery.accepted
        report.refused, report.kinds = delivery.refused, delivery.kinds
        return report

    async def _receive(self, numbers: Iterator[int]) -> None:
        """One page: a visitor after the other."""
        while not self._should_stop() and (number := next(numbers, None)) is not None:
            await self._visit(self._visitors.visitor(number))
            self._report.visitors += 1

    async def _visit(self, visitor: Visitor) -> None:
        """A visitor's slates; what they click joins their history."""
        history = list(visitor.history)
        for request in range(self._options.requests_per_visitor):
            await self._bucket.take()
            answer = await self._recommend(visitor.visitor_id, history)
            if answer is None:
                continue
            self._note_arm(visitor.visitor_id, answer.get("arm"))
            slate = [str(item["item_id"]) for item in answer["items"]]
            reactions = self._visitors.react(visitor, request, slate)
            known = set(history)
            history += [one.item_id for one in reactions if one.clicked and one.item_id not in known]
            events = events_of(self._options.seed, visitor.visitor_id, str(answer["request_id"]), reactions)
            await self._delivery.put(events)

    async def _recommend(self, user_id: str, history: Sequence[str]) -> dict[str, Any] | None:
        """An answer, or None where none came, which is counted and not tried again: the visitor has gone on."""
        body = {"user_id": user_id, "history": history[-MAX_HISTORY:], "k": self._options.k}
        self._report.requests += 1
        asked = time.perf_counter()
        try:
            async with self._session.post("/v1/recommend", json=body) as response:
                answer = await json_object(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            status, answer = 0, {"code": type(error).__name__}
        if status == 200 and {"request_id", "items"} <= answer.keys():
            self._report.latencies_ms.append(1e3 * (time.perf_counter() - asked))
            return answer
        check_allowed(status, answer)
        self._report.failures += 1
        self._report.failed[f"{status} {answer.get('code', 'not_the_api')}".strip()] += 1
        return None

    def _note_arm(self, user_id: str, arm: str | None) -> None:
        known = self._report.arms_by_user.get(user_id, ())
        if arm is not None and arm not in known:
            self._report.arms_by_user[user_id] = (*known, arm)

    async def _tell(self, on_progress: Callable[[Progress], None]) -> None:
        while True:
            on_progress(self._progress())
            await asyncio.sleep(PROGRESS_EVERY_S)

    def _progress(self) -> Progress:
        report, elapsed = self._report, time.monotonic() - self._started
        return Progress(
            report.visitors, self._options.visitors, report.requests, report.failures, self._delivery.accepted, elapsed
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
