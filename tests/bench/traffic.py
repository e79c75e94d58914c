"""Load on a running service from a process of its own: open loop with arrivals fixed beforehand, or closed loop.

    python tests/bench/traffic.py < JOB.json        the fields of `Job`; prints one JSON object of columns

In the open loop a request's latency counts from the moment it was due, not from when the sender got round to it, so
that queueing shows and a slow service cannot slow its own load down. Some users report what they clicked; whether they
click depends on the user and the position alone, never on the arm.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt

from serving.delivery import Delivery, events_of
from serving.visitors import Reaction

SENDERS = 2
TIMEOUT_S = 15.0
CLICK_SHARE = 0.13
POOL = 256
"""Distinct histories; encoded once, so that the sender is no bottleneck."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one sender does. starts_at: on the clock of time.time(), so that several senders start together.

    rate_per_s: None is the closed loop with `concurrency` requests under way; else Poisson arrivals of that rate.
    reporting: share of the users who report impressions and clicks.
    """

    url: str
    token: str
    seconds: float
    starts_at: float
    items: int
    history: int
    rate_per_s: float | None = None
    concurrency: int = 1
    k: int = 10
    reporting: float = 0.0
    seed: int = 0
    first_user: int = 0


@dataclass(slots=True)
class Seen:
    """Columns, one row a request: when it was due and how long it took, both from the start, and what came of it.

    arm: "" outside every experiment. fallback: another arm answered. status: 0 when nothing answered.
    """

    due_s: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    arm: list[str] = field(default_factory=list)
    fallback: list[bool] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    events_sent: int = 0
    events_accepted: int = 0

    def join(self, other: Seen) -> None:
        """Take another sender's rows in."""
        for name in ("due_s", "lag_ms", "latency_ms", "arm", "fallback", "status"):
            getattr(self, name).extend(getattr(other, name))
        self.events_sent += other.events_sent
        self.events_accepted += other.events_accepted


def arrivals(rate_per_s: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Times of a Poisson process in [0, seconds), ascending."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate_per_s * seconds)
    return np.sort(rng.uniform(0.0, seconds, count))


def histories(items: int, length: int, seed: int, item_ids: Sequence[str] | None = None) -> list[bytes]:
    """POOL encoded histories of `length` items each, without repeats as far as there are items."""
    rng = np.random.default_rng(seed)
    names = item_ids or [f"i{number}" for number in range(items)]
    draws = (rng.choice(items, size=min(length, items), replace=False) for _ in range(POOL))
    return [json.dumps([names[number] for number in draw], separators=(",", ":")).encode() for draw in draws]


def dice(name: str) -> float:
    """A uniform number in [0, 1) that belongs to a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


def reactions(user_id: str, slate: Sequence[str]) -> list[Reaction]:
    """What a user does with a slate: clicks by position and luck, whatever the items and whichever the arm."""
    found = []
    for position, item in enumerate(slate):
        clicked = dice(f"click/{user_id}/{position}") < CLICK_SHARE
        found.append(Reaction(item, position, clicked, 30.0 if clicked else 0.0, False))
    return found


class Sender:
    """One job under way."""

    def __init__(self, job: Job, session: aiohttp.ClientSession) -> None:
        self._job, self._session = job, session
        self._histories = histories(job.items, job.history, job.seed)
        self._delivery = Delivery(session)
        self._asked = 0
        self.seen = Seen()

    async def run(self) -> Seen:
        """Send everything, wait for the answers and for the delivery of what users report."""
        job = self._job
        helpers = [asyncio.create_task(self._delivery.deliver()) for _ in range(SENDERS)]
        await asyncio.sleep(max(0.0, job.starts_at - time.time()))
        start = time.perf_counter()
        if job.rate_per_s is None:
            await asyncio.gather(*(self._ask_again(start) for _ in range(job.concurrency)))
        else:
            await self._ask_on_time(start, arrivals(job.rate_per_s, job.seconds, job.seed))
        await self._delivery.join()
        for helper in helpers:
            helper.cancel()
        self.seen.events_sent, self.seen.events_accepted = self._delivery.sent, self._delivery.accepted
        return self.seen

    async def _ask_again(self, start: float) -> None:
        while (now := time.perf_counter() - start) < self._job.seconds:
            await self._ask(start, now)

    async def _ask_on_time(self, start: float, due: npt.NDArray[np.float64]) -> None:
        async with asyncio.TaskGroup() as group:
            for at in due.tolist():
                if (wait := at - (time.perf_counter() - start)) > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._ask(start, at))

    async def _ask(self, start: float, due: float) -> None:
        number, self._asked = self._asked, self._asked + 1
        user = f"u{self._job.first_user + number}"
        body = b'{"user_id":"%s","history":%s,"k":%d}' % (
            user.encode(), self._histories[number % POOL], self._job.k,
        )  # fmt: skip
        lag = time.perf_counter() - start - due
        answer: dict[str, Any] = {}
        try:
            async with self._session.post("/v1/recommend", data=body) as response:
                status, answer = response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            status = 0
        seen = self.seen
        seen.due_s.append(due)
        seen.lag_ms.append(1e3 * lag)
        seen.latency_ms.append(1e3 * (time.perf_counter() - start - due))
        seen.status.append(status)
        seen.arm.append(answer.get("arm") or "" if status == 200 else "")
        seen.fallback.append(status == 200 and answer.get("arm") != answer.get("served_arm"))
        if status == 200 and dice(f"reports/{user}") < self._job.reporting:
            slate = [str(item["item_id"]) for item in answer["items"]]
            await self._delivery.put(events_of(0, user, str(answer["request_id"]), reactions(user, slate)))


async def send(job: Job) -> Seen:
    """Run a job in this process."""
    headers = {"Authorization": f"Bearer {job.token}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(job.url, connector=connector, headers=headers, timeout=timeout) as session:
        # Content-Type of the session would also be that of /v1/events, which is JSON, too
        return await Sender(job, session).run()


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm at one load. answered_per_s counts answers that came after the warm-up and before the end."""

    requests: int
    answered_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    error_share: float
    fallback_share: float
    lag_p99_ms: float


def summarised(seen: Seen, seconds: float, arm: str | None = None, warm_up_s: float = 1.0) -> Summary:
    """Requests due in [warm_up_s, seconds) of one arm (None: of all); NaN latencies where nothing was answered."""
    due = np.asarray(seen.due_s, dtype=float)
    ours = np.full(due.shape, True) if arm is None else np.asarray(seen.arm, dtype=object) == arm
    answered = ours & (np.asarray(seen.status, dtype=int) == 200)
    ended = due + np.asarray(seen.latency_ms, dtype=float) / 1e3
    in_time = int((answered & (ended >= warm_up_s) & (ended < seconds)).sum())
    rows = ours & (due >= warm_up_s) & (due < seconds)
    fine = rows & answered
    total = int(rows.sum())
    latency = np.asarray(seen.latency_ms)[fine]
    p50, p95, p99 = np.percentile(latency, [50, 95, 99]).tolist() if latency.size else (math.nan,) * 3
    return Summary(
        requests=total,
        answered_per_s=in_time / (seconds - warm_up_s),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        error_share=(total - int(fine.sum())) / total if total else 0.0,
        fallback_share=float(np.asarray(seen.fallback)[rows].mean()) if total else 0.0,
        lag_p99_ms=float(np.percentile(np.asarray(seen.lag_ms)[rows], 99)) if total else math.nan,
    )


def main() -> None:
    job = Job(**json.load(sys.stdin))
    try:
        import uvloop

        seen = uvloop.run(send(job))
    except ImportError:
        seen = asyncio.run(send(job))
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
