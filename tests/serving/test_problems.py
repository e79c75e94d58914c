"""Errors as problem+json: each with its status, code and field, and a bug of ours shows nothing of its inside."""

from __future__ import annotations

import logging
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from experiment import errors as experiment_errors
from experiment.errors import (
    ExperimentError,
    ExperimentExistsError,
    IllegalTransitionError,
    InvalidUserError,
    SpecError,
    StoreUnavailableError,
    UnknownExperimentError,
    VersionConflictError,
)
from serving.errors import ConfigurationError, InvalidRequestError, NoAnswerError, SpoolFullError
from serving.problems import MEDIA_TYPE, Problem, install, problem_of

TABLE: list[tuple[Exception, int, str, list[str]]] = [
    (SpecError("metrics[1].margin", "too wide"), 422, "invalid_request", ["metrics[1].margin"]),
    (InvalidRequestError("history[3]", "no item"), 422, "invalid_request", ["history[3]"]),
    (InvalidUserError("user_id: must not be empty"), 422, "invalid_request", ["user_id"]),
    (ConfigurationError("checkpoint: not found"), 422, "invalid_request", []),
    (UnknownExperimentError("e"), 404, "not_found", []),
    (ExperimentExistsError("e"), 409, "already_exists", ["key"]),
    (IllegalTransitionError("e", "ready", "promote"), 409, "illegal_state", []),
    (VersionConflictError("e", 3), 412, "version_conflict", []),
    (StoreUnavailableError("SQL is away"), 503, "unavailable", []),
    (NoAnswerError("nobody answered"), 503, "unavailable", []),
    (SpoolFullError("full"), 503, "overloaded", []),
    (Problem(418, "teapot", "short and stout", [("handle", "is here")]), 418, "teapot", ["handle"]),
    (HTTPException(404), 404, "not_found", []),
    (HTTPException(405), 405, "method_not_allowed", []),
    (HTTPException(413, "too many bytes"), 413, "too_large", []),
    (HTTPException(418), 418, "error", []),
    (RuntimeError("the password is hunter2"), 500, "internal", []),
    (KeyError("hunter2"), 500, "internal", []),
]


class Inner(BaseModel):
    name: str = Field(min_length=2)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    k: int = Field(default=1, ge=1)
    inner: list[Inner] = []


def client_for(error: Exception | None = None) -> httpx.AsyncClient:
    app = FastAPI()
    install(app)

    @app.get("/fails")
    def fails() -> None:
        assert error is not None
        raise error

    @app.post("/takes")
    def takes(body: Body, times: int = 1, x_count: Annotated[int | None, Header()] = None) -> None:
        pass

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://crossfade.test")


@pytest.mark.parametrize(("error", "status", "code", "fields"), TABLE, ids=lambda value: type(value).__name__)
async def test_every_error_has_its_status_its_code_and_its_fields(
    error: Exception, status: int, code: str, fields: list[str]
) -> None:
    response = await client_for(error).get("/fails")
    assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)
    body = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["detail"]
    assert [problem["field"] for problem in body["errors"]] == fields
    assert "hunter2" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)


def test_no_error_of_the_core_is_forgotten() -> None:
    """A new domain error that nobody maps would be a 500."""
    mapped = {type(error) for error, *_ in TABLE}
    known = {
        kind
        for kind in vars(experiment_errors).values()
        if isinstance(kind, type) and issubclass(kind, ExperimentError) and kind is not ExperimentError
    }
    assert known <= mapped


async def test_a_reason_does_not_repeat_its_field() -> None:
    body = (await client_for(InvalidUserError("user_id: must not be empty")).get("/fails")).json()
    assert body["errors"] == [{"field": "user_id", "reason": "must not be empty"}]


async def test_a_bug_is_logged_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="serving.problems"):
        await client_for(RuntimeError("the cause")).get("/fails")
    assert "the cause" in caplog.text
    assert "GET /fails" in caplog.text


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ('{"k": 0}', ["k"]),
        ('{"k": "many"}', ["k"]),
        ('{"other": 1}', ["other"]),
        ('{"inner": [{"name": "ok"}, {"name": "x"}]}', ["inner[1].name"]),
        ('{"inner": [{}], "k": 0}', ["inner[0].name", "k"]),
        ("[]", ["body"]),
        ("null", ["body"]),
        ("", ["body"]),
        ("{", ["body"]),
        ('{"k": 1', ["body"]),
    ],
)
async def test_a_wrong_field_is_named_as_its_sender_wrote_it(content: str, fields: list[str]) -> None:
    headers = {"Content-Type": "application/json"}
    response = await client_for().post("/takes", content=content, headers=headers)
    assert response.status_code == 422
    assert sorted(problem["field"] for problem in response.json()["errors"]) == sorted(fields)


async def test_queries_and_headers_are_named_too() -> None:
    response = await client_for().post("/takes?times=often", json={}, headers={"X-Count": "some"})
    assert {problem["field"] for problem in response.json()["errors"]} == {"times", "x-count"}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("DELETE", "/fails", 405)])
async def test_the_frameworks_own_errors_are_problems_too(method: str, path: str, status: int) -> None:
    response = await client_for().request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)
    if status == 405:
        assert response.headers["allow"] == "GET"


def test_headers_of_a_problem_are_sent() -> None:
    headers = {"WWW-Authenticate": "Bearer"}
    assert Problem(401, "unauthenticated", "who?", headers=headers).response().headers["www-authenticate"] == "Bearer"
    assert problem_of(HTTPException(401, headers=headers)).headers == headers
