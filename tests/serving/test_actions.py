"""Actions and overrides over HTTP: versions and keys that make no sense are refused, and nothing happens twice."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from experiment.spec import parse_spec
from experiment.state import State
from experiment.store.memory import MemoryExperimentRepository, MemoryTables
from serving import problems
from serving.auth import Scope, Tokens
from serving.idempotency import Turns
from serving.routes import actions, experiments
from tests.experiment.factories import DOCUMENT

NOW = datetime(2026, 11, 23, tzinfo=UTC)
KEY = DOCUMENT["key"]
START = f"/v1/experiments/{KEY}/start"
WHY = {"reason": "it is time"}


@pytest.fixture
def repository() -> MemoryExperimentRepository:
    made = MemoryExperimentRepository(MemoryTables())
    made.create(parse_spec(DOCUMENT), NOW, "ann")
    return made


@pytest.fixture
def client(repository: MemoryExperimentRepository) -> httpx.AsyncClient:
    async def publish() -> None:
        pass

    app = FastAPI()
    app.state.services = SimpleNamespace(
        tokens=Tokens({"ann": ("secret", Scope.OPERATE)}), experiments=repository, clock=lambda: NOW,
        code_version="1", publish=publish, turns=Turns(),
    )  # fmt: skip
    problems.install(app)
    app.include_router(experiments.router)
    app.include_router(actions.router)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url="http://crossfade.test",
        headers={"Authorization": "Bearer secret"},
    )


def refused_field(response: httpx.Response) -> str:
    assert response.status_code == 422
    field: str = response.json()["errors"][0]["field"]
    return field


@pytest.mark.parametrize("version", ['"1"', "1", 'W/"1"', "*", ' "1" ', None])
async def test_the_version_that_was_seen_may_be_named_as_an_etag(
    client: httpx.AsyncClient, repository: MemoryExperimentRepository, version: str | None
) -> None:
    assert repository.get(KEY).version == 1
    headers = {} if version is None else {"If-Match": version}
    response = await client.post(START, json=WHY, headers=headers)
    assert (response.status_code, response.json()["state"], response.headers["etag"]) == (200, "running", '"2"')


@pytest.mark.parametrize("version", ["0", "2", '"999999999"'])
async def test_another_version_than_the_present_one_changes_nothing(
    client: httpx.AsyncClient, repository: MemoryExperimentRepository, version: str
) -> None:
    response = await client.post(START, json=WHY, headers={"If-Match": version})
    assert (response.status_code, response.json()["code"]) == (412, "version_conflict")
    assert repository.get(KEY).state is State.READY


@pytest.mark.parametrize("version", ["", '""', "one", "-1", "1.0", "\u00b2", "9" * 30, "9" * 5000])
async def test_what_is_no_version_is_refused_by_its_header(
    client: httpx.AsyncClient, repository: MemoryExperimentRepository, version: str
) -> None:
    response = await client.post(START, json=WHY, headers={"If-Match": version.encode("latin-1")})
    assert refused_field(response) == "If-Match"
    assert repository.get(KEY).state is State.READY


async def test_a_blank_idempotency_key_is_none(
    client: httpx.AsyncClient, repository: MemoryExperimentRepository
) -> None:
    assert refused_field(await client.post(START, json=WHY, headers={"Idempotency-Key": ""})) == "Idempotency-Key"
    assert repository.get(KEY).state is State.READY


async def test_one_key_acts_once(client: httpx.AsyncClient, repository: MemoryExperimentRepository) -> None:
    answers = [await client.post(START, json=WHY, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert {(answer.status_code, answer.content, answer.headers["etag"]) for answer in answers} == {
        (200, answers[0].content, '"2"')
    }
    assert (await client.post(START, json=WHY)).status_code == 409


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "  "}, {"reason": 3}, {"reason": "x" * 1001}])
async def test_every_action_has_a_reason(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    assert refused_field(await client.post(START, json=body)) == "reason"


@pytest.mark.parametrize("user", ["a%00b", "%20", "u" * 257])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_user_that_no_database_keeps_gets_no_override(
    client: httpx.AsyncClient, repository: MemoryExperimentRepository, method: str, user: str
) -> None:
    body = {"arm": "fp8"} if method == "PUT" else None
    response = await client.request(method, f"/v1/experiments/{KEY}/overrides/{user}", json=body)
    assert refused_field(response) == "user_id"
    assert repository.overrides() == {}


async def test_an_override_is_set_and_lifted(client: httpx.AsyncClient, repository: MemoryExperimentRepository) -> None:
    path = f"/v1/experiments/{KEY}/overrides/ann"
    assert (await client.put(path, json={"arm": "fp8"})).status_code == 200
    assert repository.overrides() == {KEY: {"ann": "fp8"}}
    assert refused_field(await client.put(path, json={"arm": "other"})) == "arm"
    assert (await client.delete(path)).status_code == 204
    assert repository.overrides() == {}
