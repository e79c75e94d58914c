"""What may be asked for: no unknown item, and no longer history than the service is set to read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import InvalidRequestError
from serving.routes.recommend import RecommendRequest, recommend
from serving.settings import HISTORY_LIMIT, Settings


class AskedError(Exception):
    """The splitter was asked."""


def services(**settings: Any) -> Any:
    async def recommended(_user: str, history: list[str], _k: int) -> None:
        raise AskedError(len(history))

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


def test_no_setting_allows_an_endless_history() -> None:
    request(HISTORY_LIMIT)
    with pytest.raises(ValidationError):
        request(HISTORY_LIMIT + 1)
