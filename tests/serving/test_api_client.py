"""The API's client against a server on a real port: what it sends, what it reads, when it tries again."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from serving.api_client import ATTEMPTS, ApiClient, ApiError, retry_after_s


@dataclass
class FakeApi:
    """Answers from a script, then 200 {"ok": True}; keeps what it was asked."""

    url: str = ""
    script: list[Response] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        self.seen.append((request.method, request.url.path, dict(request.headers), body.decode()))
        return self.script.pop(0) if self.script else JSONResponse({"ok": True})


def problem(
    status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None, **headers: str
) -> Response:
    body = {"type": "about:blank", "status": status, "code": code, "detail": detail, "errors": errors or []}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(body, status, headers=named, media_type="application/problem+json")


@pytest.fixture(scope="module")
def server() -> Iterator[FakeApi]:
    fake = FakeApi()
    app = Starlette(routes=[Route("/{path:path}", fake.answer, methods=["GET", "POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield fake
    running.should_exit = True
    thread.join(timeout=10)


@pytest.fixture
def api(server: FakeApi) -> FakeApi:
    server.script.clear()
    server.seen.clear()
    return server


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def client(api: FakeApi, waits: list[float]) -> Iterator[ApiClient]:
    with ApiClient(api.url, "secret", 5.0, sleep=waits.append, new_key=lambda: "made-up") as client:
        yield client


def test_the_token_travels_with_every_request(api: FakeApi, client: ApiClient) -> None:
    client.status("a")
    client.recommend("u", ["1"], 5)
    assert [headers["authorization"] for _, _, headers, _ in api.seen] == ["Bearer secret"] * 2


def test_addresses_and_bodies_are_those_of_the_api(api: FakeApi, client: ApiClient) -> None:
    client.recommend("u", ["1"], 5)
    client.create_experiment("key: x", "application/yaml")
    client.action("fp8", "promote", "why not", arm="b", if_match=3)
    client.report("odd/key")
    assert [(method, path) for method, path, _, _ in api.seen] == [
        ("POST", "/v1/recommend"),
        ("POST", "/v1/experiments"),
        ("POST", "/v1/experiments/fp8/promote"),
        ("GET", "/v1/experiments/odd/key/report"),
    ]
    assert api.seen[0][3] == '{"user_id": "u", "history": ["1"], "k": 5}'
    assert api.seen[1][2]["content-type"] == "application/yaml"
    assert api.seen[1][3] == "key: x"
    assert api.seen[2][2]["if-match"] == '"3"'
    assert api.seen[2][3] == '{"reason": "why not", "arm": "b"}'


def test_what_is_liked_and_the_profile_are_part_of_the_body(api: FakeApi, client: ApiClient) -> None:
    client.recommend("u", ["1"], 5, liked=["1"], profile={"age": "25-34"})
    assert json.loads(api.seen[0][3]) == {
        "user_id": "u", "history": ["1"], "k": 5, "liked": ["1"], "profile": {"age": "25-34"},
    }  # fmt: skip


def test_lists_come_out_of_their_envelopes(api: FakeApi, client: ApiClient) -> None:
    for name in ("variants", "experiments", "points", "decisions"):
        api.script.append(JSONResponse({name: [{"name": name}]}))
    found = [client.variants(), client.experiments(), client.timeseries("k"), client.decisions("k")]
    assert found == [[{"name": name}] for name in ("variants", "experiments", "points", "decisions")]


def test_a_refusal_names_its_fields(api: FakeApi, client: ApiClient) -> None:
    errors = [{"field": "metrics[0].name", "reason": "unknown metric 'ctx'"}]
    api.script.append(problem(422, "invalid_request", "the specification is wrong", errors))
    with pytest.raises(ApiError, match=r"metrics\[0\]\.name: unknown metric 'ctx'") as caught:
        client.create_experiment("key: x")
    assert (caught.value.status, caught.value.code) == (422, "invalid_request")
    assert caught.value.errors == (("metrics[0].name", "unknown metric 'ctx'"),)
    assert len(api.seen) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 500])
def test_other_refusals_are_not_tried_again(api: FakeApi, client: ApiClient, status: int) -> None:
    api.script.append(problem(status, "some_code", "no"))
    with pytest.raises(ApiError) as caught:
        client.action("fp8", "start", "go")
    assert (caught.value.status, caught.value.code, len(api.seen)) == (status, "some_code", 1)


def test_after_503_the_same_request_follows_under_the_same_key_when_told(
    api: FakeApi, client: ApiClient, waits: list[float]
) -> None:
    api.script += [problem(503, "unavailable", "no database", Retry_After="3"), problem(503, "unavailable", "still")]
    assert client.action("fp8", "start", "go") == {"ok": True}
    assert waits == [3.0, 0.5]
    assert [headers["idempotency-key"] for _, _, headers, _ in api.seen] == ["made-up"] * 3
    assert len({body for _, _, _, body in api.seen}) == 1


def test_the_callers_own_key_is_kept(api: FakeApi, client: ApiClient) -> None:
    client.action("fp8", "start", "go", idempotency_key="mine")
    assert api.seen[0][2]["idempotency-key"] == "mine"


def test_a_lasting_503_is_an_error_in_the_end(api: FakeApi, client: ApiClient, waits: list[float]) -> None:
    api.script += [problem(503, "overloaded", "the spool is full", Retry_After="1") for _ in range(ATTEMPTS)]
    with pytest.raises(ApiError, match="the spool is full") as caught:
        client.events([{"event_id": "e"}])
    assert (caught.value.code, len(api.seen), waits) == ("overloaded", ATTEMPTS, [1.0] * (ATTEMPTS - 1))


def test_an_answer_from_something_else_is_not_taken_for_the_api(api: FakeApi, client: ApiClient) -> None:
    api.script += [PlainTextResponse("<html>", 502), PlainTextResponse("hello"), JSONResponse([1])]
    for _ in range(3):
        with pytest.raises(ApiError) as caught:
            client.status("fp8")
        assert caught.value.code == "not_the_api"


def test_nobody_listening_is_unreachable_after_several_tries() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    waits: list[float] = []
    with (
        ApiClient(f"http://127.0.0.1:{port}", "t", 1.0, sleep=waits.append) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.recommend("u")
    assert (caught.value.status, caught.value.code) == (0, "unreachable")
    assert waits == [0.25, 0.5, 1.0]


def test_a_lost_answer_is_asked_for_again_only_where_nothing_happens_twice() -> None:
    """The server takes the request and hangs up, so that nobody knows whether it acted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = 0

        def hang_up() -> None:
            nonlocal taken
            for _ in range(1 + ATTEMPTS):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.close()
                taken += 1

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with ApiClient(url, "t", 5.0, sleep=lambda _: None) as client:
            with pytest.raises(ApiError):
                client.create_experiment("key: x")
            assert taken <= 1
            with pytest.raises(ApiError):
                client.action("fp8", "start", "go")
        thread.join(timeout=10)
        assert taken == 1 + ATTEMPTS


def test_an_impossible_address_is_refused_at_once() -> None:
    waits: list[float] = []
    with ApiClient("ftp://127.0.0.1:1", "t", sleep=waits.append) as client, pytest.raises(ApiError, match="ftp"):
        client.status("fp8")
    assert waits == []


@pytest.mark.parametrize(
    ("header", "seconds"), [("2", 2.0), ("0", 0.0), ("9999", 10.0), (None, 0.7), ("soon", 0.7), ("-1", 0.7)]
)
def test_retry_after_is_read_in_seconds_within_reason(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, 0.7) == seconds
