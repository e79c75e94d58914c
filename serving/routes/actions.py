"""What a person does to an experiment: start, pause, resume, advance, promote, roll back, stop, restart."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from experiment.controller import perform
from experiment.ramp import Action
from experiment.state import ExperimentRow
from serving.auth import Principal, require
from serving.errors import InvalidRequestError
from serving.idempotency import once
from serving.routes.experiments import etag, experiment_fields
from serving.services import Services, services_of

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

_MAX_DIGITS = 9
"""Of a version: more than any experiment changes, and what every database can compare."""

Shared = Annotated[Services, Depends(services_of)]
Operator = Annotated[Principal, Depends(require("operate"))]


class Why(BaseModel):
    """Every action has a reason: it is what others read in the log of decisions."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"reason": "cost review"}})

    reason: str = Field(min_length=1, max_length=1000)
    arm: str | None = Field(default=None, description="which treatment to promote, when there are several")

    @field_validator("reason")
    @classmethod
    def _said(cls, reason: str) -> str:
        if not reason.strip():
            raise ValueError("must say why")
        return reason.strip()


@router.post("/{key}/{action}", summary="Change the course of an experiment")
async def act(
    key: str,
    action: Action,
    body: Why,
    services: Shared,
    principal: Operator,
    idempotency_key: Annotated[str | None, Header(description="the same key acts once")] = None,
    if_match: Annotated[str | None, Header(description="the ETag that this decision was based on")] = None,
) -> Response:
    """409 where the experiment's state does not allow it, 412 when it is no longer what If-Match says."""
    expected = _version(if_match)

    async def carry_out() -> tuple[str, dict[str, str]]:
        row = await asyncio.to_thread(
            perform,
            services.experiments,
            key,
            action,
            body.reason,
            principal.name,
            services.clock(),
            services.code_version,
            expected,
            body.arm,
        )
        await services.publish()
        return _said(row)

    asked = json.dumps([key, action, body.model_dump(), expected]).encode()
    return await once(services, principal.name, idempotency_key, asked, carry_out)


def _said(row: ExperimentRow) -> tuple[str, dict[str, str]]:
    return json.dumps(experiment_fields(row)), {"ETag": etag(row)}


def _version(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidRequestError("If-Match", f'expected the version as an ETag, such as "3", got {if_match!r}')
    return int(text)
