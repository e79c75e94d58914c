"""Tokens: who may do what, in the header and in the page's cookie, and a file of tokens that can be trusted."""

from __future__ import annotations

import json
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from serving import problems
from serving.auth import COOKIE, IMPLIED, Principal, Scope, Tokens, load_tokens, require
from serving.errors import ConfigurationError

SECRETS = {scope.value: (f"secret of {scope.value}", scope) for scope in Scope}
ALLOWED = {
    ("read", "read"),
    ("events", "events"),
    ("operate", "operate"),
    ("operate", "read"),
    *(("admin", scope.value) for scope in Scope),
}


def naming(scope: Scope) -> Callable[[Request], Awaitable[str]]:
    """A route that says who asked."""
    authorised = require(scope)

    async def answer(request: Request) -> str:
        return (await authorised(request)).name

    return answer


@pytest.fixture
def client() -> httpx.AsyncClient:
    """An application with one route for each scope, to be read and to be written."""
    app = FastAPI()
    app.state.services = SimpleNamespace(tokens=Tokens(SECRETS))
    problems.install(app)
    for scope in Scope:
        app.add_api_route(f"/{scope.value}", naming(scope), methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://crossfade.test")


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name][0]}"}


@pytest.mark.parametrize("needed", list(Scope))
@pytest.mark.parametrize("held", list(Scope))
async def test_a_token_may_do_what_its_scope_says_and_no_more(
    client: httpx.AsyncClient, held: Scope, needed: Scope
) -> None:
    response = await client.post(f"/{needed}", headers=bearer(held))
    if (held.value, needed.value) in ALLOWED:
        assert (response.status_code, response.json()) == (200, held.value)
    else:
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        assert needed.value in response.json()["detail"]


def test_every_scope_implies_itself_and_admin_all() -> None:
    assert all(scope in IMPLIED[scope] for scope in Scope)
    assert IMPLIED[Scope.ADMIN] == set(Scope)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "secret of read", "Basic c2VjcmV0", "Bearer secret of rea",
     "Bearer secret of read2", "Token secret of read", "Bearer \u00e4\u00f6\u00fc"],
)  # fmt: skip
async def test_without_a_valid_token_nobody_is_anybody(client: httpx.AsyncClient, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    response = await client.get("/read", headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_read_as_the_standard_says(client: httpx.AsyncClient, scheme: str) -> None:
    assert (await client.get("/read", headers={"Authorization": f"{scheme} {SECRETS['read'][0]}"})).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_cookie_lets_a_person_read(client: httpx.AsyncClient, method: str) -> None:
    client.cookies.set(COOKIE, SECRETS["operate"][0])
    assert (await client.request(method, "/read")).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://crossfade.test", 200),
        (None, 401),
        ("null", 401),
        ("", 401),
        ("http://evil.test", 401),
        ("http://crossfade.test.evil.test", 401),
        ("http://crossfade.test:8080", 401),
        ("http://evil.test/http://crossfade.test", 401),
    ],
)
async def test_the_cookie_acts_for_our_own_page_only(
    client: httpx.AsyncClient, method: str, origin: str | None, status: int
) -> None:
    client.cookies.set(COOKIE, SECRETS["operate"][0])
    headers = {} if origin is None else {"Origin": origin}
    assert (await client.request(method, "/operate", headers=headers)).status_code == status


async def test_a_token_in_the_header_acts_from_anywhere(client: httpx.AsyncClient) -> None:
    assert (
        await client.post("/operate", headers=bearer("operate") | {"Origin": "http://evil.test"})
    ).status_code == 200


async def test_a_wrong_token_is_not_replaced_by_the_cookie(client: httpx.AsyncClient) -> None:
    client.cookies.set(COOKIE, SECRETS["operate"][0])
    assert (await client.get("/read", headers={"Authorization": "Bearer wrong"})).status_code == 401


def test_tokens_are_told_apart_and_not_kept() -> None:
    tokens = Tokens(SECRETS)
    for name, (secret, scope) in SECRETS.items():
        assert tokens.principal(secret) == Principal(name, IMPLIED[scope])
    assert tokens.principal("") is None
    assert not any(secret in repr(vars(tokens)) for secret, _ in SECRETS.values())


def test_the_first_start_makes_a_token_for_each_scope_that_only_the_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "home" / "tokens.json"
    made = load_tokens(path)
    assert {name: scope for name, (_, scope) in made.items()} == {scope.value: scope for scope in Scope}
    assert len({token for token, _ in made.values()}) == len(Scope)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_tokens(path) == made, "the next start keeps them"
    assert load_tokens(tmp_path / "another" / "tokens.json") != made


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "3",
        '{"me": null}',
        '{"me": {"token": "secret"}}',
        '{"me": {"scope": "read"}}',
        '{"me": {"token": "secret", "scope": "everything"}}',
        '{"me": {"token": "", "scope": "read"}}',
        '{"me": {"token": "  ", "scope": "read"}}',
        '{"me": {"token": null, "scope": "read"}}',
        '{"me": {"token": 12345, "scope": "read"}}',
    ],
)
def test_a_file_that_is_no_list_of_tokens_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"tokens\.json"):
        load_tokens(path)


def test_tokens_of_ones_own_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    own: dict[str, Any] = {"ci of the shop": {"token": " a long secret ", "scope": "operate"}}
    path.write_text(json.dumps(own))
    assert load_tokens(path) == {"ci of the shop": ("a long secret", Scope.OPERATE)}
