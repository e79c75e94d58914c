"""Calling a variant: a protocol, and HTTP through HAProxy as its adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from serving.errors import VariantError

INTERNAL_HEADER = "X-Crossfade-Internal"
"""Carries the service's own key: variants answer nobody else."""


@dataclass(frozen=True, slots=True)
class Item:
    """One recommended item and the model's score."""

    item_id: str
    score: float


class VariantClient(Protocol):
    """One call to one variant."""

    async def recommend(self, variant: str, history: Sequence[str], k: int, timeout_s: float) -> list[Item]:
        """The k best items. Raises VariantError with a `kind` of timeout, overloaded, unreachable, failed or refused.

        refused: the variant is well, this question is not for it (an item that it does not know).
        """


class HttpVariantClient:
    """`VariantClient` over HTTP: `<base>/variants/<name>`, one pooled session of keep-alive connections."""

    def __init__(self, base_url: str, internal_key: str, limit: int = 256) -> None:
        self._base, self._key, self._limit = base_url.rstrip("/"), internal_key, limit
        self._session: aiohttp.ClientSession | None = None

    async def recommend(self, variant: str, history: Sequence[str], k: int, timeout_s: float) -> list[Item]:
        """See `VariantClient.recommend`."""
        answer = await self._post(variant, {"history": list(history), "k": k}, timeout_s)
        try:
            items = [Item(str(item), float(score)) for item, score in answer["items"]]
        except (KeyError, TypeError, ValueError) as error:
            raise VariantError(variant, "failed", f"not an answer: {error}") from error
        if not all(math.isfinite(item.score) for item in items):
            raise VariantError(variant, "failed", "a score is not finite")
        return items

    async def _post(self, variant: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._limit)
            self._session = aiohttp.ClientSession(connector=connector, headers={INTERNAL_HEADER: self._key})
        url = f"{self._base}/variants/{variant}"
        try:
            async with self._session.post(url, json=body, timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
                if response.status in {429, 503}:
                    raise VariantError(variant, "overloaded", f"HTTP {response.status}")
                if response.status == 400:
                    raise VariantError(variant, "refused", f"HTTP {response.status}")
                if response.status != 200:
                    raise VariantError(variant, "failed", f"HTTP {response.status}")
                answer: dict[str, Any] = await response.json()
                return answer
        except TimeoutError as error:
            raise VariantError(variant, "timeout", f"no answer in {timeout_s:g} s") from error
        except (aiohttp.ContentTypeError, ValueError) as error:
            raise VariantError(variant, "failed", f"not an answer: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise VariantError(variant, "unreachable", str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
