"""What a run has shown so far: status, report, the confidence sequences over time, the log of decisions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from experiment.report import build_report, build_status, decision_fields, timeseries
from serving.auth import require
from serving.services import Services, services_of

router = APIRouter(prefix="/v1/experiments", tags=["reports"], dependencies=[Depends(require("read"))])

Shared = Annotated[Services, Depends(services_of)]
Run = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="an earlier run; the current one unless given")]


@router.get("/{key}/status", summary="Where the ramp stands and what the last look said")
def status(key: str, services: Shared) -> dict[str, Any]:
    """safe_to_advance: the last look found no sign of harm and nothing missing."""
    row = services.experiments.get(key)
    return build_status(row, services.experiments.decisions(key, thinned_to=1))


@router.get("/{key}/report", summary="Everything about the current run")
def report(key: str, services: Shared) -> dict[str, Any]:
    """Counts, effects with always-valid limits, sample ratio, ramp steps with reasons, newest decisions."""
    row = services.experiments.get(key)
    return build_report(row, services.experiments.decisions(key, thinned_to=1))


@router.get("/{key}/timeseries", summary="The confidence sequences, look by look")
def series(
    key: str,
    services: Shared,
    run: Run = None,
    looks: Annotated[int, Query(ge=1, le=100_000, description="about as many, evenly spread, and the newest")] = 500,
) -> dict[str, Any]:
    """One point per look, metric and treatment."""
    row = services.experiments.get(key)
    found = services.experiments.decisions(key, run, thinned_to=looks)
    return {"key": key, "run": run or row.run, "points": timeseries(row.spec, found)}


@router.get("/{key}/decisions", summary="Who decided what, when and why")
def decisions(
    key: str,
    services: Shared,
    run: Run = None,
    with_evidence: Annotated[bool, Query(description="also what each look saw, so that it can be replayed")] = False,
) -> dict[str, Any]:
    """Oldest first."""
    services.experiments.get(key)
    found = services.experiments.decisions(key, run)
    lines = [decision_fields(one) | ({"evidence": one.evidence} if with_evidence else {}) for one in found]
    return {"key": key, "decisions": lines}
