"""Calling a variant: a protocol, and HTTP through HAProxy as its adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import aiohttp

from serving.coalesce import Coalescer, CrowdedError
from serving.errors import VariantError
from serving.question import Question

INTERNAL_HEADER = "X-Crossfade-Internal"
"""Carries the service's own key: variants answer nobody else."""

CALLS = 4
"""To a variant at a time: some are on their way while one is computed."""

_ROOM = 32
"""Full calls' worth of questions that may wait for a variant; more are refused at once."""


@dataclass(frozen=True, slots=True)
class Item:
    """One recommended item and the model's score."""

    item_id: str
    score: float


class VariantClient(Protocol):
    """One call to one variant."""

    async def recommend(self, variant: str, question: Question, timeout_s: float) -> list[Item]:
        """The best items. Raises VariantError with a `kind` of timeout, overloaded, unreachable, failed or refused.

        refused: the variant is well, this question is not for it (an item that it does not know).
        """


class HttpVariantClient:
    """`VariantClient` over HTTP: `<base>/variants/<name>`, one pooled session of keep-alive connections.

    To each variant at most `calls` calls are under way, each with up to `most` questions that waited for it.
    """

    def __init__(self, base_url: str, internal_key: str, *, calls: int = CALLS, most: int = 8) -> None:
        self._base, self._key, self._calls, self._most = base_url.rstrip("/"), internal_key, calls, most
        self._session: aiohttp.ClientSession | None = None
        self._places: dict[str, Coalescer[Question, list[Item]]] = {}

    async def recommend(self, variant: str, question: Question, timeout_s: float) -> list[Item]:
        """See `VariantClient.recommend`."""
        place = self._places.get(variant)
        if place is None:
            send, room = partial(self._ask, variant), _ROOM * self._most
            place = self._places[variant] = Coalescer(send, self._calls, self._most, room)
        try:
            return await place.ask(question, timeout_s)
        except TimeoutError as error:
            raise VariantError(variant, "timeout", f"no answer in {timeout_s:g} s") from error
        except CrowdedError as error:
            raise VariantError(variant, "overloaded", str(error)) from error

    async def _ask(
        self, variant: str, questions: Sequence[Question], timeout_s: float
    ) -> Sequence[list[Item] | Exception]:
        body = {"questions": [question.body() for question in questions]}
        answer = await self._post(variant, body, timeout_s)
        answers = answer.get("answers") if isinstance(answer, dict) else None
        if not isinstance(answers, list) or len(answers) != len(questions):
            raise VariantError(variant, "failed", f"not {len(questions)} answers: {answer!r:.200}")
        return [_items(variant, one) for one in answers]

    async def _post(self, variant: str, body: dict[str, Any], timeout_s: float) -> Any:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)  # the calls are limited by variant
            self._session = aiohttp.ClientSession(connector=connector, headers={INTERNAL_HEADER: self._key})
        url = f"{self._base}/variants/{variant}"
        try:
            async with self._session.post(url, json=body, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
                if response.status in {429, 503}:
                    raise VariantError(variant, "overloaded", f"HTTP {response.status}")
                if response.status != 200:
                    raise VariantError(variant, "failed", f"HTTP {response.status}")
                return await response.json()
        except TimeoutError as error:
            raise VariantError(variant, "timeout", f"no answer in {timeout_s:g} s") from error
        except (aiohttp.ContentTypeError, ValueError) as error:
            raise VariantError(variant, "failed", f"not an answer: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise VariantError(variant, "unreachable", str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Close the connections."""
        for place in self._places.values():
            await place.close()
        if self._session is not None:
            await self._session.close()
            self._session = None


def _items(variant: str, answer: Any) -> list[Item] | VariantError:
    """One question's slate, or why it has none."""
    if isinstance(answer, dict) and "field" in answer:
        return VariantError(variant, "refused", f"{answer['field']}: {answer.get('reason')}")
    if isinstance(answer, dict) and "error" in answer:
        return VariantError(variant, "failed", str(answer["error"]))
    try:
        items = [Item(str(item), float(score)) for item, score in answer["items"]]
    except (KeyError, TypeError, ValueError) as error:
        return VariantError(variant, "failed", f"not an answer: {error}")
    if not all(math.isfinite(item.score) for item in items):
        return VariantError(variant, "failed", "a score is not finite")
    return items
