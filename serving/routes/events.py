"""POST /v1/events: what users did with their slates. Accepted means on disk; every refusal names its field."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from experiment.errors import InvalidUserError
from experiment.events import COMPARISON, Interaction, Kind
from experiment.spec import field_errors
from serving.auth import require
from serving.errors import UnknownRequestError
from serving.problems import Problem
from serving.routes.recommend import ItemId, UserId
from serving.services import Services, services_of

router = APIRouter(prefix="/v1", tags=["data plane"])

MAX_EVENTS = 1000


class Event(BaseModel):
    """One event about one item of a slate. event_id is yours and makes the report idempotent."""

    model_config = ConfigDict(extra="forbid")

    event_id: Annotated[str, StringConstraints(min_length=1, max_length=128, strict=True)]
    kind: Literal[Kind.IMPRESSION, Kind.CLICK, Kind.WATCH, Kind.LIKE, Kind.DISMISS]
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128, strict=True)]
    user_id: Annotated[UserId, Field(strict=True)]
    item_id: Annotated[ItemId, Field(strict=True)]
    position: int | None = Field(default=None, ge=0, le=10_000, strict=True)
    value: float | None = Field(default=None, ge=0, le=86_400, allow_inf_nan=False, description="seconds of a watch")
    occurred_at: AwareDatetime | None = Field(default=None, description="the client's clock; only shown, never trusted")


class Batch(BaseModel):
    """Events are judged one by one: a bad one is refused and the others are kept."""

    model_config = ConfigDict(extra="forbid")

    events: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_EVENTS, description="a list of events; see the schema `Event`"
    )


class Refusal(BaseModel):
    index: int
    event_id: str | None
    field: str
    reason: str


class BatchResponse(BaseModel):
    accepted: int
    refused: list[Refusal]


@router.post(
    "/events", status_code=202, dependencies=[Depends(require("events"))], summary="Report impressions, clicks, watches"
)
async def report_events(body: Batch, services: Annotated[Services, Depends(services_of)]) -> BatchResponse:
    """Answers once the accepted events are on disk. 422 when none was acceptable, 503 while the spool is full."""
    now = services.clock()
    accepted: list[Interaction] = []
    refused: list[Refusal] = []
    for index, raw in enumerate(body.events):
        try:
            accepted.append(_interaction(raw, services, now))
        except _RefusedError as error:
            event_id = raw.get("event_id")
            known = event_id.encode("utf-8", "backslashreplace").decode() if isinstance(event_id, str) else None
            refused.append(Refusal(index=index, event_id=known, field=error.field, reason=error.reason))
    services.telemetry.count_events(0, len(refused))
    if not accepted:
        errors = [(refusal.field, refusal.reason) for refusal in _located(refused)]
        raise Problem(422, "invalid_request", "No event of the batch was acceptable", errors=errors)
    await services.inbox.accept(accepted)
    services.telemetry.count_events(len(accepted), 0)
    return BatchResponse(accepted=len(accepted), refused=_located(refused))


class _RefusedError(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def _interaction(raw: dict[str, Any], services: Services, now: datetime) -> Interaction:
    try:
        event = Event.model_validate(raw)
        services.signer.verify(event.request_id, event.user_id)
    except ValidationError as error:
        raise _RefusedError(*field_errors(error)[0]) from error
    except UnknownRequestError as error:
        raise _RefusedError("request_id", str(error)) from error
    except InvalidUserError as error:
        raise _RefusedError("user_id", str(error)) from error
    if event.event_id.startswith(COMPARISON):
        raise _RefusedError("event_id", f"ids that begin with {COMPARISON!r} are the service's own")
    if event.item_id not in services.catalogue:
        raise _RefusedError("item_id", f"no item is called {event.item_id!r}")
    if event.kind is Kind.WATCH and event.value is None:
        raise _RefusedError("value", "a watch needs its seconds")
    return Interaction(
        event_id=event.event_id,
        kind=event.kind,
        request_id=event.request_id,
        user_id=event.user_id,
        item_id=event.item_id,
        position=event.position,
        value=event.value if event.kind is Kind.WATCH and event.value is not None else 1.0,
        occurred_at=event.occurred_at or now,
        received_at=now,
    )


def _located(refused: list[Refusal]) -> list[Refusal]:
    return [refusal.model_copy(update={"field": f"events[{refusal.index}].{refusal.field}"}) for refusal in refused]
