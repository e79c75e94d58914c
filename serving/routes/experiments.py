"""Experiments themselves: create one from its specification, read them, force an arm for a tester."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict

from experiment.assign import checked
from experiment.errors import SpecError
from experiment.report import coverage
from experiment.spec import ExperimentSpec, load_spec, parse_spec
from experiment.state import ExperimentRow
from serving.auth import Principal, require
from serving.errors import InvalidRequestError
from serving.problems import Problem
from serving.services import Services, services_of

router = APIRouter(prefix="/v1", tags=["experiments"])

Shared = Annotated[Services, Depends(services_of)]
Operator = Annotated[Principal, Depends(require("operate"))]
Readers = Depends(require("read"))

YAML = {"application/yaml", "application/x-yaml", "text/yaml", "text/plain"}
_BODY = {"application/json": {"schema": ExperimentSpec.model_json_schema()}, "application/yaml": {"schema": {}}}


@router.post(
    "/experiments",
    status_code=201,
    summary="Create an experiment; nothing is routed before its start",
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def create(request: Request, services: Shared, principal: Operator) -> Response:
    """A specification in YAML or JSON. Refused as a whole when any field of it is wrong."""
    spec = _parsed((await request.body()), request.headers.get("content-type", "application/json"))
    known = {variant.name for variant in await services.variants.list()}
    for field, arm in [
        ("control", spec.control),
        *((f"treatments[{i}]", arm) for i, arm in enumerate(spec.treatments)),
    ]:
        if arm.variant not in known:
            raise SpecError(f"{field}.variant", f"no variant is called {arm.variant!r}; there are {_list(known)}")
    row = await asyncio.to_thread(services.experiments.create, spec, services.clock(), principal.name)
    headers = {"Location": f"/v1/experiments/{row.key}", "ETag": etag(row)}
    return Response(json.dumps(experiment_fields(row)), 201, headers, "application/json")


@router.get("/experiments", dependencies=[Readers], summary="All experiments, newest first")
def list_experiments(services: Shared) -> dict[str, Any]:
    """In short; each one's own address tells the rest."""
    return {"experiments": [_summary(row) for row in services.experiments.list()]}


@router.get("/experiments/{key}", dependencies=[Readers], summary="One experiment with its specification")
def get(key: str, services: Shared, response: Response) -> dict[str, Any]:
    """The ETag is the version that If-Match takes."""
    row = services.experiments.get(key)
    response.headers["ETag"] = etag(row)
    return experiment_fields(row)


@router.get("/schema/experiment", dependencies=[Readers], summary="The JSON Schema of a specification")
def schema() -> dict[str, Any]:
    """For editors and for checks in your own pipeline."""
    return ExperimentSpec.model_json_schema()


class Override(BaseModel):
    """The arm that a tester sees from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    arm: str


@router.put("/experiments/{key}/overrides/{user_id}", summary="Force an arm for a tester")
async def set_override(key: str, user_id: str, body: Override, services: Shared, principal: Operator) -> dict[str, Any]:
    """Forced users are routed, and left out of the analysis."""
    row = await asyncio.to_thread(services.experiments.get, key)
    arms = {arm.arm for arm in row.spec.arms}
    if body.arm not in arms:
        raise InvalidRequestError("arm", f"{key!r} has no arm {body.arm!r}; it has {_list(arms)}")
    await _override(services, key, user_id, body.arm, principal)
    return {"key": key, "user_id": user_id, "arm": body.arm}


@router.delete("/experiments/{key}/overrides/{user_id}", status_code=204, summary="Lift an override")
async def lift_override(key: str, user_id: str, services: Shared, principal: Operator) -> None:
    """No harm when there is none."""
    await asyncio.to_thread(services.experiments.get, key)
    await _override(services, key, user_id, None, principal)


async def _override(services: Services, key: str, user_id: str, arm: str | None, principal: Principal) -> None:
    user = checked(user_id)
    if "\0" in user:
        raise InvalidRequestError("user_id", "must not contain NUL: no database keeps it")
    await asyncio.to_thread(services.experiments.set_override, key, user, arm, services.clock(), principal.name)
    await services.publish()


def experiment_fields(row: ExperimentRow) -> dict[str, Any]:
    """An experiment as the API shows it."""
    return _summary(row) | {
        "spec_digest": row.spec_digest,
        "pause_reason": row.pause_reason,
        "created_at": row.created_at.isoformat(),
        "started_at": None if row.started_at is None else row.started_at.isoformat(),
        "ended_at": None if row.ended_at is None else row.ended_at.isoformat(),
        "spec": row.spec.model_dump(mode="json"),
    }


def etag(row: ExperimentRow) -> str:
    """The version, as HTTP compares it."""
    return f'"{row.version}"'


def _summary(row: ExperimentRow) -> dict[str, Any]:
    return {
        "key": row.key,
        "run": row.run,
        "version": row.version,
        "state": row.state.value,
        "step": row.step,
        "steps": len(row.spec.ramp.steps),
        "coverage": coverage(row),
        "promoted_variant": row.promoted_variant,
    }


def _parsed(body: bytes, content_type: str) -> ExperimentSpec:
    kind = content_type.partition(";")[0].strip().lower()
    try:
        text = body.decode()
        if kind in YAML:
            return load_spec(text)
        if kind != "application/json":
            raise Problem(415, "unsupported_media_type", "send application/yaml or application/json")
        document = json.loads(text)
    except ValueError as error:
        raise SpecError("body", f"is not valid {kind}: {error}") from error
    if not isinstance(document, dict):
        raise SpecError("body", "expected an object")
    return parse_spec(document)


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
