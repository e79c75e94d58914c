"""Bodies above the limit reach no parser: announced or not, in one piece or in many, and the limit itself passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI, Form, HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from serving import problems
from serving.body_limit import BodyLimit

DEFAULT, EVENTS = 100, 1000


@pytest.fixture
def client() -> httpx.AsyncClient:
    """One route for every way in which a body is read."""
    app = FastAPI()
    problems.install(app)

    @app.post("/json")
    def parsed(body: Annotated[str, Body()]) -> int:
        return len(body)

    @app.post("/raw")
    @app.post("/v1/events")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.post("/form")
    def form(field: Annotated[str, Form()]) -> int:
        return len(field)

    app.add_middleware(BodyLimit, limits={"/v1/events": EVENTS}, default=DEFAULT)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://crossfade.test")


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    """Chunked: its length is announced to nobody."""
    for start in range(0, len(content), 10):
        yield content[start : start + 10]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "size", "status"),
    [("/raw", DEFAULT, 200), ("/raw", DEFAULT + 1, 413), ("/v1/events", EVENTS, 200), ("/v1/events", EVENTS + 1, 413)],
)
async def test_the_limit_of_the_path_holds_to_the_byte(
    client: httpx.AsyncClient, path: str, size: int, status: int, chunked: bool
) -> None:
    content = b"x" * size
    response = await client.post(path, content=in_pieces(content) if chunked else content)
    assert response.status_code == status
    if status == 200:
        assert response.json() == size
    else:
        assert response.json()["code"] == "too_large"
        assert "bytes" in response.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "content", "kind"),
    [
        ("/json", b'"' + b"x" * 200 + b'"', "application/json"),
        ("/form", b"field=" + b"x" * 200, "application/x-www-form-urlencoded"),
    ],
)
async def test_parsers_meet_the_limit_too(
    client: httpx.AsyncClient, path: str, content: bytes, kind: str, chunked: bool
) -> None:
    sent = in_pieces(content) if chunked else content
    response = await client.post(path, content=sent, headers={"Content-Type": kind})
    assert (response.status_code, response.headers["content-type"]) == (413, "application/problem+json")


@pytest.mark.parametrize("announced", ["9" * 30, "9" * 5000, "0" * 50 + "101"])
async def test_an_absurd_announcement_is_too_large_and_no_error_of_ours(
    client: httpx.AsyncClient, announced: str
) -> None:
    response = await client.post("/raw", content=b"x", headers={"Content-Length": announced})
    assert response.status_code == 413


async def test_a_small_body_is_parsed_as_ever(client: httpx.AsyncClient) -> None:
    assert (await client.post("/json", json="hello")).json() == 5


class Reader:
    """An application that reads everything and counts it."""

    def __init__(self) -> None:
        self.read = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            self.read += len(message.get("body", b""))
            if not message.get("more_body"):
                return


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=8), st.sampled_from(["right", "none", "lie", "junk"]))
def test_no_split_and_no_lie_gets_more_than_the_limit_through(pieces: list[bytes], announced: str) -> None:
    size = sum(map(len, pieces))
    value = {"right": str(size), "none": None, "lie": "1", "junk": "-5"}[announced]
    headers = [] if value is None else [(b"content-length", value.encode())]
    messages: list[Any] = [
        {"type": "http.request", "body": piece, "more_body": number + 1 < len(pieces)}
        for number, piece in enumerate(pieces)
    ]
    reader, sent = Reader(), list[Message]()

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        scope = {"type": "http", "path": "/", "method": "POST", "headers": headers}
        await BodyLimit(reader, {}, DEFAULT)(scope, receive, send)

    if size <= DEFAULT:
        asyncio.run(ask())
        assert (reader.read, sent) == (size, [])
        return
    if announced == "right":
        asyncio.run(ask())
        assert (sent[0]["status"], reader.read) == (413, 0)
    else:
        with pytest.raises(HTTPException) as caught:
            asyncio.run(ask())
        assert caught.value.status_code == 413
        assert reader.read <= DEFAULT


async def test_what_is_not_http_passes_untouched() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    await BodyLimit(app, {}, 1)(scope, None, None)  # type: ignore[arg-type] # they must not be touched
    assert seen == [scope]
