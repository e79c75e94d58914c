"""Traffic against a service on a real port: reproducible, blind to arms, within its rate, every event accounted for."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from model.data import Row, from_rows
from model.split import leave_one_out
from serving import delivery
from serving.api_client import ApiError
from serving.errors import ConfigurationError
from serving.simulate import Progress, TokenBucket, TrafficOptions, TrafficReport, simulate
from serving.visitors import Visitors

ITEMS = [str(i) for i in range(60)]


@dataclass
class FakeService:
    """Slates that depend on the user, how often they came and their history; the tests plant its faults."""

    url: str = ""
    arms: tuple[str | None, ...] = ("a", "b")
    requests: list[dict[str, Any]] = field(default_factory=list)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: list[list[str]] = field(default_factory=list)
    event_faults: list[web.Response | str] = field(default_factory=list)
    recommend_faults: list[web.Response | str] = field(default_factory=list)
    refuse_item: str | None = None

    def forget(self) -> None:
        self.requests.clear()
        self.events.clear()

    async def recommend(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.recommend_faults:
            return fault(request, self.recommend_faults.pop(0))
        nth = sum(earlier["user_id"] == body["user_id"] for earlier in self.requests)
        seed = hashlib.sha256(f"{body['user_id']}/{nth}/{body['history']}".encode()).digest()
        self.requests.append({"at": time.monotonic(), "auth": request.headers["Authorization"], **body})
        slate = np.random.default_rng(list(seed)).choice(ITEMS, body["k"], replace=False)
        return web.json_response(
            {
                "request_id": seed.hex(),
                "items": [{"item_id": str(item), "score": 0.0, "position": i} for i, item in enumerate(slate)],
                "arm": self.arms[len(self.requests) % len(self.arms)],
            }
        )

    async def report(self, request: web.Request) -> web.Response:
        events = (await request.json())["events"]
        self.batches.append([event["event_id"] for event in events])
        if self.event_faults:
            return fault(request, self.event_faults.pop(0))
        refused = []
        for index, event in enumerate(events):
            if event["item_id"] == self.refuse_item:
                refused.append({"index": index, "field": f"events[{index}].item_id", "reason": "not today"})
            else:
                self.events[event["event_id"]] = event
        return web.json_response({"accepted": len(events) - len(refused), "refused": refused}, status=202)


def fault(request: web.Request, planted: web.Response | str) -> web.Response:
    if isinstance(planted, str):
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    return planted


def problem(status: int, code: str, **headers: str) -> web.Response:
    body = {"status": status, "code": code, "detail": f"{code}, alas", "errors": []}
    return web.json_response(body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    fake = FakeService()
    app = web.Application()
    app.add_routes([web.post("/v1/recommend", fake.recommend), web.post("/v1/events", fake.report)])
    async with TestServer(app) as server:
        fake.url = str(server.make_url("/"))
        yield fake


@pytest.fixture(scope="module")
def visitors() -> Visitors:
    rng = np.random.default_rng(3)
    rows = [
        Row(f"u{user}", str(item), 100.0 * t, 4.0)
        for user in range(40)
        for t, item in enumerate(rng.choice(ITEMS, 12, replace=False))
    ]
    return Visitors(leave_one_out(from_rows(rows, titles=dict.fromkeys(ITEMS, ""))), seed=7)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LINGER_S", 0.01)
    monkeypatch.setattr(delivery, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 0.02)


async def traffic(service: FakeService, crowd: Visitors, **options: Any) -> TrafficReport:
    defaults: dict[str, Any] = {"visitors": 40, "rate_per_s": 5000.0}
    return await simulate(service.url, "secret", crowd, TrafficOptions(**(defaults | options)))


def accounted(report: TrafficReport) -> bool:
    return report.sent == report.accepted + report.refused.total() == report.kinds.total()


async def test_every_visitor_asks_and_every_event_is_accounted_for(service: FakeService, visitors: Visitors) -> None:
    report = await traffic(service, visitors, requests_per_visitor=3, k=5)
    assert (report.visitors, report.requests, report.failures) == (40, 120, 0)
    assert len(report.latencies_ms) == 120
    assert Counter(request["user_id"] for request in service.requests) == {f"v{i:06d}": 3 for i in range(40)}
    assert {request["auth"] for request in service.requests} == {"Bearer secret"}
    assert report.accepted == len(service.events)
    assert not report.refused
    assert accounted(report)
    assert Counter(event["kind"] for event in service.events.values()) == report.kinds
    assert report.kinds["impression"] == 600
    assert 0 < report.kinds["click"] == report.kinds["watch"]


async def test_clicks_and_watches_cite_an_impression_of_their_slate(service: FakeService, visitors: Visitors) -> None:
    await traffic(service, visitors)
    by_kind: dict[str, set[tuple[str, str, str, int]]] = {}
    for event in service.events.values():
        spot = (event["request_id"], event["user_id"], event["item_id"], event["position"])
        by_kind.setdefault(event["kind"], set()).add(spot)
        assert ("value" in event) == (event["kind"] == "watch")
    assert by_kind["click"] <= by_kind["impression"]
    assert by_kind["watch"] == by_kind["click"]


async def test_the_same_slates_bring_the_same_events_in_whatever_order(
    service: FakeService, visitors: Visitors
) -> None:
    await traffic(service, visitors, concurrency=1)
    first = dict(service.events)
    service.forget()
    await traffic(service, visitors, concurrency=16)
    assert service.events == first
    service.forget()
    await traffic(service, visitors, seed=8)
    assert not service.events.keys() & first.keys()


async def test_arms_change_nothing_that_a_visitor_does(service: FakeService, visitors: Visitors) -> None:
    await traffic(service, visitors)
    with_arms = dict(service.events)
    service.forget()
    service.arms = (None,)
    report = await traffic(service, visitors)
    assert service.events == with_arms
    assert report.arms_by_user == {}


async def test_a_user_who_changes_arm_is_found(service: FakeService, visitors: Visitors) -> None:
    service.arms = ("a",)
    steady = await traffic(service, visitors)
    assert steady.arms_by_user == {f"v{i:06d}": ("a",) for i in range(40)}
    assert steady.moved == []
    service.arms = ("a", "b")
    moving = await traffic(service, visitors, concurrency=1)
    assert len(moving.moved) == 40


async def test_clicked_items_join_the_history_once(service: FakeService, visitors: Visitors) -> None:
    await traffic(service, visitors, requests_per_visitor=4)
    seen: dict[str, list[list[str]]] = {}
    for request in service.requests:
        seen.setdefault(request["user_id"], []).append(request["history"])
    clicked = {(e["user_id"], e["item_id"]) for e in service.events.values() if e["kind"] == "click"}
    grown = 0
    for user, histories in seen.items():
        for before, after in pairwise(histories):
            assert after[: len(before)] == before
            assert all((user, item) in clicked for item in after[len(before) :])
            assert len(set(after)) == len(after)
            grown += len(after) > len(before)
    assert grown > 10


async def test_events_survive_503_and_lost_connections_under_the_same_ids(
    service: FakeService, visitors: Visitors
) -> None:
    service.event_faults = [problem(503, "overloaded", Retry_After="0"), "hang up", problem(500, "internal")]
    report = await traffic(service, visitors, visitors=3, concurrency=1)
    assert not service.event_faults
    assert report.accepted == report.sent == len(service.events)
    assert len({tuple(batch) for batch in service.batches}) <= len(service.batches) - 3


async def test_retry_after_is_waited_for(service: FakeService, visitors: Visitors) -> None:
    service.event_faults = [problem(503, "overloaded", Retry_After="1")]
    report = await traffic(service, visitors, visitors=1)
    assert report.elapsed_s > 1.0
    assert report.accepted == report.sent


async def test_a_service_that_stays_away_leaves_undelivered_events_named(
    service: FakeService, visitors: Visitors
) -> None:
    service.event_faults = [problem(503, "overloaded", Retry_After="0") for _ in range(1000)]
    report = await traffic(service, visitors, visitors=2)
    assert dict(report.refused) == {"undelivered: 503 overloaded": report.sent}
    assert accounted(report)


async def test_refusals_are_counted_by_reason(service: FakeService, visitors: Visitors) -> None:
    service.refuse_item = "7"
    report = await traffic(service, visitors)
    assert set(report.refused) == {"item_id: not today"}
    assert report.accepted == len(service.events)
    assert accounted(report)


@pytest.mark.parametrize("status", [404, 413, 422])
async def test_a_batch_refused_as_a_whole_is_accounted_for(
    service: FakeService, visitors: Visitors, status: int
) -> None:
    service.event_faults = [problem(status, "too_bad") for _ in range(1000)]
    report = await traffic(service, visitors, visitors=3)
    assert dict(report.refused) == {f"{status} too_bad": report.sent}
    assert accounted(report)


async def test_a_slate_that_does_not_come_is_a_failure_and_not_asked_for_again(
    service: FakeService, visitors: Visitors
) -> None:
    service.recommend_faults = [problem(503, "unavailable"), "hang up", web.Response(text="<html>")]
    report = await traffic(service, visitors, visitors=10, concurrency=1)
    assert (report.requests, report.failures, len(service.requests)) == (20, 3, 17)
    assert report.failed.total() == 3
    assert report.failed["503 unavailable"] == 1
    assert len(report.latencies_ms) == 17


@pytest.mark.parametrize("route", ["recommend_faults", "event_faults"])
async def test_a_refused_token_ends_the_traffic(service: FakeService, visitors: Visitors, route: str) -> None:
    setattr(service, route, [problem(403, "forbidden") for _ in range(1000)])
    with pytest.raises(ApiError, match="forbidden, alas") as caught:
        await traffic(service, visitors)
    assert caught.value.status == 403


async def test_traffic_keeps_to_its_rate(service: FakeService, visitors: Visitors) -> None:
    report = await traffic(service, visitors, visitors=30, rate_per_s=60.0)
    span = service.requests[-1]["at"] - service.requests[0]["at"]
    assert len(service.requests) == 60
    assert span >= (60 - 3) / 60 - 0.05
    assert report.elapsed_s < 3.0


async def test_endless_traffic_brings_new_visitors_until_told_to_stop(service: FakeService, visitors: Visitors) -> None:
    told: list[Progress] = []
    options = TrafficOptions(visitors=None, rate_per_s=5000.0, first_visitor=100)
    report = await simulate(
        service.url, "t", visitors, options, told.append, should_stop=lambda: len(service.requests) >= 300
    )
    users = {request["user_id"] for request in service.requests}
    assert users == {f"v{100 + i:06d}" for i in range(report.visitors)}
    assert 150 <= report.visitors <= 150 + options.concurrency
    assert (told[-1].requests, told[-1].accepted, told[-1].of) == (report.requests, report.accepted, None)
    assert accounted(report)


async def test_a_bound_on_visitors_holds_even_when_nobody_stops_the_traffic(
    service: FakeService, visitors: Visitors
) -> None:
    options = TrafficOptions(visitors=5, rate_per_s=5000.0)
    report = await simulate(service.url, "t", visitors, options, should_stop=lambda: False)
    assert report.visitors == 5


async def test_cancelled_traffic_ends(service: FakeService, visitors: Visitors) -> None:
    options = TrafficOptions(visitors=None, rate_per_s=100.0)
    task = asyncio.create_task(simulate(service.url, "t", visitors, options, should_stop=lambda: False))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_endless_traffic_without_a_way_to_stop_is_refused(service: FakeService, visitors: Visitors) -> None:
    with pytest.raises(ConfigurationError, match="should_stop"):
        await traffic(service, visitors, visitors=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visitors", 0),
        ("requests_per_visitor", 0),
        ("k", 0),
        ("concurrency", 0),
        ("rate_per_s", 0.0),
        ("rate_per_s", float("inf")),
        ("first_visitor", -1),
    ],
)
def test_impossible_options_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        TrafficOptions(**{name: value})  # type: ignore[arg-type]


def test_a_token_bucket_lets_a_burst_through_and_then_keeps_the_pace() -> None:
    now = 0.0
    bucket = TokenBucket(10.0, burst=3, clock=lambda: now)
    assert [round(bucket.delay_s(), 6) for _ in range(5)] == [0.0, 0.0, 0.0, 0.1, 0.2]
    now = 100.0
    assert [round(bucket.delay_s(), 6) for _ in range(4)] == [0.0, 0.0, 0.0, 0.1]
