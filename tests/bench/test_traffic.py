"""Load as it is sent: arrivals fixed beforehand, latency from when it was due, clicks that know no arm."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from serving_load import Load
from serving_plan import Plan
from traffic import CLICK_SHARE, Job, Seen, arrivals, histories, reactions, send, summarised


def test_arrivals_are_a_poisson_process() -> None:
    found = arrivals(200.0, 50.0, seed=1)
    assert abs(found.size - 10_000) < 400
    assert bool((np.diff(found) >= 0).all())
    assert found[0] >= 0.0
    assert found[-1] < 50.0
    gaps = np.diff(found)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert np.array_equal(found, arrivals(200.0, 50.0, seed=1))


def test_histories_have_their_length_and_no_repeats() -> None:
    for text in histories(50, 20, seed=0)[:5]:
        items = json.loads(text)
        assert len(set(items)) == 20
    assert len(json.loads(histories(5, 20, seed=0)[0])) == 5


def test_clicks_depend_on_user_and_position_alone() -> None:
    slate, other = [f"a{i}" for i in range(10)], [f"b{i}" for i in range(10)]
    clicked = [[one.clicked for one in reactions(f"u{user}", slate)] for user in range(2000)]
    assert clicked == [[one.clicked for one in reactions(f"u{user}", other)] for user in range(2000)]
    assert float(np.mean(clicked)) == pytest.approx(CLICK_SHARE, abs=0.01)


def test_what_two_senders_saw_arrives_whole() -> None:
    nobody_there = "http://127.0.0.1:9"
    seen = Load(nobody_there, "token", Plan(items=20, context=5, senders=2)).send(2.0, rate_per_s=5000.0)
    assert set(seen.status) == {0}
    assert len(seen.due_s) == len(seen.fallback)
    assert len(json.dumps(seen.due_s)) > 2 * 65536  # more than a pipe of each sender holds


def seen_of(rows: list[tuple[float, float, str, bool, int]]) -> Seen:
    due, latency, arm, fallback, status = (list(column) for column in zip(*rows, strict=True))
    return Seen(due, [0.0] * len(rows), latency, arm, fallback, status)


def test_a_summary_counts_by_hand() -> None:
    seen = seen_of(
        [
            (0.5, 100.0, "a", False, 200),  # due and answered while warming up
            (0.9, 300.0, "a", False, 200),  # answered after it: throughput, but no latency
            (1.5, 10.0, "a", False, 200),
            (2.0, 20.0, "a", True, 200),
            (2.5, 30.0, "a", False, 503),
            (2.9, 400.0, "a", False, 200),  # answered after the end
            (2.0, 50.0, "b", False, 200),
        ]
    )
    found = summarised(seen, 3.0, "a", warm_up_s=1.0)
    assert (found.requests, found.answered_per_s) == (4, 3 / 2.0)
    assert found.p50_ms == 20.0
    assert (found.error_share, found.fallback_share) == (0.25, 0.25)
    assert summarised(seen, 3.0).requests == 5


def test_nothing_answered_is_no_latency() -> None:
    found = summarised(seen_of([(1.5, 10.0, "a", False, 0)]), 3.0)
    assert (found.requests, found.answered_per_s, found.error_share) == (1, 0.0, 1.0)
    assert math.isnan(found.p50_ms)
    assert summarised(Seen(), 3.0).requests == 0


class Service:
    """Answers after `delay_s`, one request at a time."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s, self.turn, self.events = delay_s, asyncio.Lock(), 0
        self.users: list[str] = []

    async def recommend(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self.turn:
            await asyncio.sleep(self.delay_s)
        self.users.append(body["user_id"])
        items = [{"item_id": item, "position": place} for place, item in enumerate(body["history"][: body["k"]])]
        answer = {"request_id": body["user_id"], "items": items, "arm": "fp8", "served_arm": "bf16"}
        return web.json_response(answer)

    async def report(self, request: web.Request) -> web.Response:
        events = (await request.json())["events"]
        self.events += len(events)
        return web.json_response({"accepted": len(events), "refused": []}, status=202)


async def sent(service: Service, **job: Any) -> Seen:
    application = web.Application()
    application.router.add_post("/v1/recommend", service.recommend)
    application.router.add_post("/v1/events", service.report)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        return await send(Job(url, "token", starts_at=time.time(), items=30, history=12, **job))
    finally:
        await runner.cleanup()


async def test_an_open_loop_shows_the_queue() -> None:
    """Forty a second at a service that manages twenty: the last ones wait for half of the time."""
    service = Service(0.05)
    seen = await sent(service, seconds=1.5, rate_per_s=40.0, seed=3)
    assert len(seen.due_s) == len(service.users) == arrivals(40.0, 1.5, 3).size
    assert max(seen.latency_ms) > 500
    assert len(set(service.users)) == len(service.users)
    assert all(seen.fallback)


async def test_a_closed_loop_keeps_as_many_under_way_as_asked() -> None:
    seen = await sent(Service(0.05), seconds=1.0, concurrency=2, reporting=1.0)
    assert 10 <= len(seen.due_s) <= 22
    assert seen.events_sent == seen.events_accepted >= 10 * len(seen.due_s)
