"""Batches of events: slates share a request, none is too large, and ids say which event it is."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from serving import delivery
from serving.delivery import Delivery, Event, events_of
from serving.routes.events import Event as AcceptedEvent
from serving.visitors import Reaction

SLATE = [Reaction("a", 0, False, 0.0, False), Reaction("b", 1, True, 12.5, True), Reaction("c", 2, True, 3.0, False)]


def test_a_slate_is_seen_before_it_is_clicked_watched_and_liked() -> None:
    events = events_of(7, "u", "r", SLATE)
    assert [(event["kind"], event["item_id"]) for event in events] == [
        ("impression", "a"),
        ("impression", "b"),
        ("impression", "c"),
        ("click", "b"),
        ("watch", "b"),
        ("like", "b"),
        ("click", "c"),
        ("watch", "c"),
    ]
    assert [event.get("value") for event in events] == [None, None, None, None, 12.5, None, None, 3.0]
    assert {(event["user_id"], event["request_id"]) for event in events} == {("u", "r")}


def test_events_are_what_the_api_takes() -> None:
    for event in events_of(7, "u", "r", SLATE):
        taken = AcceptedEvent.model_validate(event)
        assert taken.model_dump(mode="json", exclude_none=True) == event


def test_event_ids_are_a_function_of_seed_request_item_and_kind() -> None:
    def ids(seed: int = 7, user: str = "u", request: str = "r") -> list[str]:
        return [event["event_id"] for event in events_of(seed, user, request, SLATE)]

    assert ids() == ids(user="another")
    assert len(set(ids() + ids(seed=8) + ids(request="s"))) == 24
    assert all(UUID(one).version == 5 for one in ids())


async def sent_batches(slates: list[list[Event]]) -> tuple[list[int], Delivery]:
    sizes: list[int] = []

    async def accept(request: web.Request) -> web.Response:
        events: list[Any] = (await request.json())["events"]
        sizes.append(len(events))
        return web.json_response({"accepted": len(events), "refused": []}, status=202)

    app = web.Application()
    app.router.add_post("/v1/events", accept)
    async with TestServer(app) as server, aiohttp.ClientSession(str(server.make_url("/"))) as session:
        sender = Delivery(session)
        task = asyncio.create_task(sender.deliver())
        for slate in slates:
            await sender.put(slate)
        await sender.join()
        task.cancel()
    return sizes, sender


async def test_slates_that_come_together_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LINGER_S", 0.05)
    sizes, sender = await sent_batches([events_of(7, "u", f"r{i}", SLATE) for i in range(10)])
    assert sizes == [80]
    assert sender.sent == sender.accepted == 80


async def test_a_batch_holds_no_more_than_the_api_takes() -> None:
    event = {"kind": "impression"}
    sizes, sender = await sent_batches([[dict(event) for _ in range(2300)], [], [dict(event)]])
    assert max(sizes) <= 1000
    assert sum(sizes) == sender.accepted == 2301
