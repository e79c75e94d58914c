"""The variants that can be arms: list them, add one beside the running ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from serving.auth import require
from serving.problems import Problem
from serving.services import Services, services_of

router = APIRouter(prefix="/v1/variants", tags=["variants"])

Shared = Annotated[Services, Depends(services_of)]


class NewVariant(BaseModel):
    """A checkpoint folder that the cluster's nodes can read, and what to call it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    checkpoint: str = Field(min_length=1, max_length=4096)


@router.get("", dependencies=[Depends(require("read"))], summary="The deployed variants and their health")
async def list_variants(services: Shared) -> dict[str, Any]:
    """Checkpoint, precision, replicas, health of each."""
    return {"variants": [asdict(variant) for variant in await services.variants.list()]}


@router.post(
    "", status_code=201, dependencies=[Depends(require("admin"))], summary="Deploy another variant, restarting nothing"
)
async def add_variant(body: NewVariant, services: Shared) -> dict[str, Any]:
    """Answers once the variant does. A damaged or foreign checkpoint is refused with the reason."""
    if body.name in {variant.name for variant in await services.variants.list()}:
        raise Problem(409, "already_exists", f"a variant is called {body.name!r} already", [("name", "is taken")])
    await services.variants.add(body.name, body.checkpoint)
    return {"name": body.name, "checkpoint": body.checkpoint}
