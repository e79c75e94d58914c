"""POST /v1/recommend: one slate for one user."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from experiment.assign import MAX_USER_ID_LENGTH
from model.signals import MAX_CHARACTERS, MAX_FEATURES
from serving.auth import require
from serving.errors import InvalidRequestError
from serving.question import Question
from serving.services import Services, services_of
from serving.settings import HISTORY_LIMIT

router = APIRouter(prefix="/v1", tags=["data plane"])

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Feature = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]
UserId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_USER_ID_LENGTH)]


class RecommendRequest(BaseModel):
    """Who asks, what is known of them, and how many items they want."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"user_id": "user-123", "history": ["50", "181"], "k": 10}},
    )

    user_id: UserId
    history: list[ItemId] = Field(
        default_factory=list,
        max_length=HISTORY_LIMIT,
        description="oldest first; 512 items unless the service's `history_max` says otherwise",
    )
    k: int = Field(default=10, ge=1, le=50)
    liked: list[ItemId] = Field(
        default_factory=list,
        max_length=HISTORY_LIMIT,
        description="what the user rated well, oldest first: not shown again, and read by models with that pathway",
    )
    profile: dict[Feature, Feature] = Field(
        default_factory=dict,
        max_length=MAX_FEATURES,
        description="feature and value, such as an age group: read by models with that pathway",
    )


class RecommendedItem(BaseModel):
    item_id: str
    score: float = Field(description="log probability under the variant's model")
    position: int = Field(description="0 is the top")


class RecommendResponse(BaseModel):
    """Events about this slate cite its request_id. arm is the assigned arm, served_arm is who answered."""

    request_id: str
    items: list[RecommendedItem]
    experiment: str | None
    arm: str | None
    served_arm: str | None
    bucket: float | None
    table_version: int
    reason: str = Field(description="SPLIT, TARGETING_MATCH, DEFAULT, or STALE while Redis is away")


@router.post("/recommend", dependencies=[Depends(require("events"))], summary="Recommend items to a user")
async def recommend(body: RecommendRequest, services: Annotated[Services, Depends(services_of)]) -> RecommendResponse:
    """Routed by the running experiments; a user keeps their arm for the whole run."""
    question, most = Question(body.history, body.k, body.liked, body.profile), services.settings.history_max
    if len(body.history) > most:
        raise InvalidRequestError("history", f"must have at most {most} items, got {len(body.history)}")
    if (both := len(body.history) + len(body.liked)) > most:
        raise InvalidRequestError("liked", f"must have at most {most} items with the history, got {both}")
    question.require_known(services.catalogue)
    answer = await services.splitter.recommend(body.user_id, question)
    return RecommendResponse(
        request_id=answer.request_id,
        items=[
            RecommendedItem(item_id=item.item_id, score=item.score, position=position)
            for position, item in enumerate(answer.items)
        ],
        experiment=answer.route.experiment,
        arm=answer.route.arm,
        served_arm=answer.served_arm,
        bucket=answer.route.bucket,
        table_version=answer.table_version,
        reason=answer.route.reason,
    )
