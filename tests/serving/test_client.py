"""Calling a variant over HTTP: every way in which it may fail has its word, and no broken answer passes for a slate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from serving.client import INTERNAL_HEADER, HttpVariantClient, Item
from serving.errors import VariantError
from serving.question import Question

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Fake:
    """A variant over real HTTP; `handler` says what it answers."""

    def __init__(self) -> None:
        self.handler: Handler = self._echo
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []
        self.peers: set[Any] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get(INTERNAL_HEADER))
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        return await self.handler(request)

    async def _echo(self, request: web.Request) -> web.Response:
        one = {"items": [["a", -0.5], ["b", -1]]}
        return web.json_response({"answers": [one for _ in (await request.json())["questions"]]})


def answering(status: int, text: str = "{}", content_type: str = "application/json") -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type=content_type)

    return handler


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
async def client(fake: Fake) -> AsyncIterator[HttpVariantClient]:
    app = web.Application()
    app.router.add_post("/variants/{name}", fake.handle)
    async with TestServer(app) as server:
        made = HttpVariantClient(str(server.make_url("/")), "the key")
        yield made
        await made.close()


async def failure(client: HttpVariantClient, timeout_s: float = 5.0) -> VariantError:
    with pytest.raises(VariantError) as caught:
        await client.recommend("fp8", Question(["x"], 2), timeout_s)
    assert caught.value.variant == "fp8"
    return caught.value


async def test_a_slate_comes_back_in_its_order(client: HttpVariantClient, fake: Fake) -> None:
    assert await client.recommend("fp8", Question(("x", "y"), 2), 5.0) == [Item("a", -0.5), Item("b", -1.0)]
    assert fake.bodies == [{"questions": [{"history": ["x", "y"], "k": 2}]}]
    assert fake.keys == ["the key"]


async def test_what_is_liked_and_the_profile_travel_along(client: HttpVariantClient, fake: Fake) -> None:
    await client.recommend("fp8", Question(["x"], 2, ("y",), {"age": "25-34"}), 5.0)
    assert fake.bodies == [{"questions": [{"history": ["x"], "k": 2, "liked": ["y"], "profile": {"age": "25-34"}}]}]


async def test_calls_share_kept_alive_connections(client: HttpVariantClient, fake: Fake) -> None:
    for _ in range(5):
        await client.recommend("fp8", Question([], 2), 5.0)
    assert len(fake.peers) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "failed"), (403, "failed"), (404, "failed"), (429, "overloaded"), (500, "failed"), (503, "overloaded")],
)
async def test_a_status_other_than_200_is_a_failure_with_its_kind(
    client: HttpVariantClient, fake: Fake, status: int, kind: str
) -> None:
    fake.handler = answering(status)
    error = await failure(client)
    assert error.kind == kind
    assert str(status) in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        None,
        "items",
        {"items": None},
        {"items": 3},
        {"items": ["abc"]},
        {"items": [["a"]]},
        {"items": [["a", 1, 2]]},
        {"items": [["a", None]]},
        {"items": [["a", "much"]]},
        {"items": [["a", float("nan")]]},
        {"items": [["a", 0.5], ["b", float("inf")]]},
    ],
    ids=json.dumps,
)
async def test_an_answer_that_is_no_slate_is_a_failure(client: HttpVariantClient, fake: Fake, answer: object) -> None:
    for whole in (answer, {"answers": [answer]}):
        fake.handler = answering(200, json.dumps(whole))
        assert (await failure(client)).kind == "failed"


async def test_what_waits_while_calls_are_under_way_travels_together(client: HttpVariantClient, fake: Fake) -> None:
    gate, echo = asyncio.Event(), fake.handler

    async def slow(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return await echo(request)

    fake.handler = slow
    asked = [asyncio.create_task(client.recommend("fp8", Question([str(place)], 2), 5.0)) for place in range(30)]
    while len(fake.bodies) < 4:
        await asyncio.sleep(0.01)
    later = [asyncio.create_task(client.recommend("fp8", Question(["later"], 2), 5.0)) for _ in range(10)]
    await asyncio.sleep(0.05)
    assert len(fake.bodies) == 4, "as many calls as may be under way"
    gate.set()
    await asyncio.gather(*asked, *later)
    sizes = [len(body["questions"]) for body in fake.bodies]
    assert (sum(sizes), max(sizes)) == (40, 8)
    assert len(sizes) <= 7


async def test_one_refused_question_leaves_its_neighbours_their_answers(client: HttpVariantClient, fake: Fake) -> None:
    async def answer(request: web.Request) -> web.Response:
        kinds = {"bad": {"field": "history[0]", "reason": "no item"}, "broken": {"error": "RuntimeError: x"}}
        questions = (await request.json())["questions"]
        return web.json_response(
            {"answers": [kinds.get(one["history"][0], {"items": [["a", 1]]}) for one in questions]}
        )

    fake.handler = answer
    histories = ["bad", "x", "broken", "y", "bad", "z"]
    found = await asyncio.gather(
        *(client.recommend("fp8", Question([one], 1), 5.0) for one in histories), return_exceptions=True
    )
    kinds = [one.kind if isinstance(one, VariantError) else one for one in found]
    assert kinds == ["refused", [Item("a", 1.0)], "failed", [Item("a", 1.0)], "refused", [Item("a", 1.0)]]
    assert "history[0]: no item" in str(found[0])


async def test_a_failed_call_is_one_error_for_all_its_questions(client: HttpVariantClient, fake: Fake) -> None:
    fake.handler = answering(500)
    asked = (client.recommend("fp8", Question([], 2), 5.0) for _ in range(40))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, VariantError) and one.kind == "failed" for one in found)
    assert len({id(one) for one in found}) == len(fake.bodies) < 40


async def test_when_too_many_wait_the_next_is_told_at_once(client: HttpVariantClient, fake: Fake) -> None:
    gate = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await gate.wait()
        return web.json_response({"answers": []})

    fake.handler = hang
    many = [asyncio.create_task(client.recommend("fp8", Question([], 2), 5.0)) for _ in range(8 * 32 + 4 * 8 + 50)]
    await asyncio.sleep(0.2)
    early = [task for task in many if task.done()]
    assert early
    assert {task.exception().kind for task in early} == {"overloaded"}  # type: ignore[union-attr]
    gate.set()
    await asyncio.gather(*many, return_exceptions=True)


@pytest.mark.parametrize(("text", "content_type"), [("{", "application/json"), ("<html>", "text/html")])
async def test_an_answer_that_is_no_json_is_a_failure(
    client: HttpVariantClient, fake: Fake, text: str, content_type: str
) -> None:
    fake.handler = answering(200, text, content_type)
    assert (await failure(client)).kind == "failed"


async def test_a_variant_that_hangs_is_given_up_after_the_callers_patience(
    client: HttpVariantClient, fake: Fake
) -> None:
    async def hang(_request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    fake.handler = hang
    error = await failure(client, timeout_s=0.05)
    assert error.kind == "timeout"
    assert "0.05 s" in str(error)


async def test_a_variant_that_hangs_up_is_unreachable(client: HttpVariantClient, fake: Fake) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    fake.handler = hang_up
    assert (await failure(client)).kind == "unreachable"


async def test_a_variant_that_is_not_there_is_unreachable(free_port: int) -> None:
    nowhere = HttpVariantClient(f"http://127.0.0.1:{free_port}", "key")
    try:
        assert (await failure(nowhere)).kind == "unreachable"
    finally:
        await nowhere.close()


async def test_after_a_failure_the_next_call_is_answered(client: HttpVariantClient, fake: Fake) -> None:
    well, fake.handler = fake.handler, answering(500)
    await failure(client)
    fake.handler = well
    assert len(await client.recommend("fp8", Question([], 2), 5.0)) == 2


async def test_closing_twice_and_before_any_call_is_harmless() -> None:
    client = HttpVariantClient("http://127.0.0.1:1", "key")
    await client.close()
    await client.close()
