"""Acting once however often a client asks: the first answer under an Idempotency-Key is the answer from then on."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from fastapi import Response

from experiment.errors import ExperimentError, StoreUnavailableError
from serving.problems import Problem

if TYPE_CHECKING:
    from serving.services import Services

_log = logging.getLogger(__name__)

MAX_KEY = 200

Act = Callable[[], Awaitable[tuple[str, dict[str, str]]]]
"""Acts, and returns the answer: a JSON text and its headers."""


class Turns:
    """Requests with one key take turns. A lock is gone when nobody waits for it any more."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, key: str) -> asyncio.Lock:
        """The lock of a key."""
        return self._locks.setdefault(key, asyncio.Lock())


async def once(services: Services, who: str, key: str | None, request: bytes, act: Act) -> Response:
    """The answer of `act`, or the one that it gave before under this key. Without a key, `act` just acts.

    who: each principal's keys are their own. request: what was asked, so that one key for two different requests is
    refused (422, idempotency_mismatch). Only successes are kept: an error may be tried again.
    """
    if key is None:
        return _answer(*await act())
    if not 0 < len(key.strip()) <= MAX_KEY:
        reason = f"must have 1 to {MAX_KEY} characters"
        raise Problem(422, "invalid_request", f"Idempotency-Key {reason}", [("Idempotency-Key", reason)])
    key = f"{who}\n{key.strip()}"  # no header can hold a line break
    digest = hashlib.sha256(request).hexdigest()
    async with services.turns.of(key):
        if known := await _recalled(services, key, digest):
            return known
        try:
            body, headers = await act()
        except ExperimentError:
            if known := await _recalled(services, key, digest):  # another gateway was faster
                return known
            raise
        kept = {"body": body, "headers": headers}
        try:
            await asyncio.to_thread(services.experiments.remember, key, digest, kept, services.clock())
        except StoreUnavailableError as error:  # what was done is done, and who asked must hear of it
            _log.warning("an answer is not kept for its Idempotency-Key: %s", error)
        return _answer(body, headers)


async def _recalled(services: Services, key: str, digest: str) -> Response | None:
    known = await asyncio.to_thread(services.experiments.recall, key)
    if known is None:
        return None
    first_digest, kept = known
    if first_digest != digest:
        text = "this Idempotency-Key was used for another request"
        raise Problem(422, "idempotency_mismatch", text, [("Idempotency-Key", text)])
    return _answer(kept["body"], kept["headers"])


def _answer(body: str, headers: Mapping[str, str]) -> Response:
    return Response(body, 200, headers=headers, media_type="application/json")
