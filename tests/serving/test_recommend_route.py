"""What may be asked for: no unknown item, and no longer history than the service is set to read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import InvalidRequestError
from serving.question import Question
from serving.routes.recommend import RecommendRequest, recommend
from serving.settings import HISTORY_LIMIT, Settings


class AskedError(Exception):
    """The splitter was asked."""


def services(**settings: Any) -> Any:
    async def recommended(_user: str, question: Question) -> None:
        raise AskedError(len(question.history))

    splitter = SimpleNamespace(recommend=recommended)
    return SimpleNamespace(settings=Settings(**settings), catalogue={"i"}, splitter=splitter)


def request(length: int, item: str = "i") -> RecommendRequest:
    return RecommendRequest(user_id="u", history=[item] * length)


@pytest.mark.parametrize(("settings", "most"), [({}, 512), ({"history_max": 3072}, 3072), ({"history_max": 0}, 0)])
async def test_a_history_is_as_long_as_the_settings_allow(settings: dict[str, int], most: int) -> None:
    with pytest.raises(AskedError, match=str(most)):
        await recommend(request(most), services(**settings))
    with pytest.raises(InvalidRequestError, match=f"history: must have at most {most} items, got {most + 1}"):
        await recommend(request(most + 1), services(**settings))


async def test_an_unknown_item_is_named_by_its_place() -> None:
    with pytest.raises(InvalidRequestError, match=r"history\[0\]: no item is called 'x'"):
        await recommend(request(2, "x"), services())


async def test_liked_items_are_held_to_the_same_rules() -> None:
    with pytest.raises(InvalidRequestError, match=r"liked\[1\]: no item is called 'x'"):
        await recommend(RecommendRequest(user_id="u", liked=["i", "x"]), services())
    with pytest.raises(InvalidRequestError, match="liked: must have at most 2 items with the history, got 3"):
        await recommend(RecommendRequest(user_id="u", history=["i"], liked=["i", "i"]), services(history_max=2))
    with pytest.raises(AskedError):
        await recommend(RecommendRequest(user_id="u", history=["i"], liked=["i"]), services(history_max=2))


@pytest.mark.parametrize(
    "profile", [{"age": 25}, {"": "x"}, {"age": ""}, {"age": "x" * 257}, {f"f{n}": "x" for n in range(65)}, ["age"]]
)
def test_a_profile_says_a_short_text_of_each_of_a_few_features(profile: Any) -> None:
    RecommendRequest(user_id="u", profile={f"f{n}": "x" * 256 for n in range(64)})
    with pytest.raises(ValidationError, match="profile"):
        RecommendRequest(user_id="u", profile=profile)


def test_no_setting_allows_an_endless_history() -> None:
    request(HISTORY_LIMIT)
    with pytest.raises(ValidationError):
        request(HISTORY_LIMIT + 1)
