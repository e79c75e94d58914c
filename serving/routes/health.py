"""Is the process alive, can it serve, and how is it doing."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.auth import require
from serving.services import Services, services_of

router = APIRouter(tags=["operations"])

Shared = Annotated[Services, Depends(services_of)]


@router.get("/healthz", summary="The process lives")
def healthz() -> dict[str, str]:
    """Needs nothing else to be alive."""
    return {"status": "ok"}


@router.get("/readyz", summary="The gateway can serve; says what is degraded")
def readyz(services: Shared) -> dict[str, Any]:
    """Ready without Redis and without SQL, too: answers go on, events wait on disk, the gate holds."""
    parts = {
        "redis": "ok" if services.table.redis_is_up else "away: arms follow from the hash alone",
        "sql": "ok" if services.writer.is_healthy else "away: events wait on disk",
    }
    degraded = [name for name, state in parts.items() if state != "ok"]
    return {
        "status": "degraded" if degraded else "ok",
        "parts": parts,
        "table_version": services.table.current.version,
        "code_version": services.code_version,
    }


@router.get("/metrics", dependencies=[Depends(require("read"))], summary="Counters and gauges for Prometheus")
def metrics(services: Shared) -> Response:
    """One replica's own; Prometheus adds them up."""
    return Response(services.telemetry.text(), media_type=CONTENT_TYPE_LATEST)
