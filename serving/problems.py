"""Every error of the API as RFC 9457 problem+json: a stable `code`, and one entry per wrong field."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from experiment.errors import (
    ExperimentExistsError,
    IllegalTransitionError,
    InvalidUserError,
    SpecError,
    StoreUnavailableError,
    UnknownExperimentError,
    VersionConflictError,
)
from serving.errors import ConfigurationError, InvalidRequestError, NoAnswerError, SpoolFullError

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

_CODES = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "illegal_state",
    412: "version_conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    503: "unavailable",
}


class Problem(Exception):  # noqa: N818 - RFC 9457's own name for it
    """An answer that is not 2xx. errors: (field, reason) pairs, fields as paths such as `events[3].item_id`."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[tuple[str, str]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors, self.headers = tuple(errors), headers or {}

    def response(self) -> JSONResponse:
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "errors": [{"field": field, "reason": reason} for field, reason in self.errors],
        }
        return JSONResponse(body, self.status, headers=self.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let the app answer all its errors this way, a bug (500) included; nothing of a bug's inside is shown."""

    async def translate(request: Request, error: Exception) -> JSONResponse:
        problem = problem_of(error)
        if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem.response()

    for kind in (Problem, HTTPException, RequestValidationError, Exception, *_DOMAIN):
        app.add_exception_handler(kind, translate)


def problem_of(error: Exception) -> Problem:
    """The answer to an error that a route let through."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _validation(error)
        case HTTPException():
            code = _CODES.get(error.status_code, "error")
            return Problem(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))
        case SpecError() | InvalidRequestError():
            return Problem(422, "invalid_request", str(error), [(error.field, error.reason)])
        case InvalidUserError():
            return Problem(422, "invalid_request", str(error), [("user_id", str(error).removeprefix("user_id: "))])
        case ConfigurationError():
            return Problem(422, "invalid_request", str(error))
        case UnknownExperimentError():
            return Problem(404, "not_found", str(error))
        case ExperimentExistsError():
            return Problem(409, "already_exists", str(error), [("key", str(error))])
        case IllegalTransitionError():
            return Problem(409, "illegal_state", str(error))
        case VersionConflictError():
            return Problem(412, "version_conflict", str(error))
        case StoreUnavailableError() | NoAnswerError() | SpoolFullError():
            code = "overloaded" if isinstance(error, SpoolFullError) else "unavailable"
            return Problem(503, code, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
        case _:
            return Problem(500, "internal", "the service made an error; its log says more")


_DOMAIN: tuple[type[Exception], ...] = (
    SpecError,
    InvalidUserError,
    InvalidRequestError,
    ConfigurationError,
    UnknownExperimentError,
    ExperimentExistsError,
    IllegalTransitionError,
    VersionConflictError,
    StoreUnavailableError,
    NoAnswerError,
    SpoolFullError,
)


def _validation(error: RequestValidationError) -> Problem:
    errors = [
        ("body", "is not JSON") if found["type"] == "json_invalid" else (_path(found["loc"]), str(found["msg"]))
        for found in error.errors()
    ]
    return Problem(422, "invalid_request", f"{errors[0][0]}: {errors[0][1]}", errors)


def _path(location: Sequence[int | str]) -> str:
    """("body", "history", 3) is history[3] to who sent it."""
    parts = location[1:] if location and location[0] in {"body", "query", "path", "header"} else location
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    return text or "body"
