"""Reporting events in batches until every one of them is accounted for: accepted, or refused with a reason."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from serving.api_client import ApiError, retry_after_s
from serving.visitors import Reaction

EVENT_NAMESPACE = uuid.UUID("6f0f6c43-1a0e-5cf5-9d0c-3a52b54a3c11")
BATCH_EVENTS = 250
MAX_EVENTS = 1000
LINGER_S = 0.1
QUEUED_SLATES = 500
ATTEMPTS = 10
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 5.0

Event = dict[str, Any]


class Delivery:
    """A bounded queue of slates' events, sent by tasks that run `deliver`. sent = accepted + the sum of refused."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._slates: asyncio.Queue[list[Event]] = asyncio.Queue(QUEUED_SLATES)
        self.sent = 0
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    async def put(self, events: list[Event]) -> None:
        """Queue the events of one slate; waits while too many are queued."""
        if events:
            await self._slates.put(events)

    async def join(self) -> None:
        """Wait until everything queued is accounted for."""
        await self._slates.join()

    async def deliver(self) -> None:
        """Send batches for ever; a slate waits up to LINGER_S for company. Raises ApiError for a refused token."""
        while True:
            slates = [await self._slates.get()]
            await asyncio.sleep(LINGER_S)
            size = len(slates[0])
            while size < BATCH_EVENTS and not self._slates.empty():
                slates.append(self._slates.get_nowait())
                size += len(slates[-1])
            events = [event for slate in slates for event in slate]
            for start in range(0, size, MAX_EVENTS):
                await self._send(events[start : start + MAX_EVENTS])
            for _ in slates:
                self._slates.task_done()

    async def _send(self, events: list[Event]) -> None:
        """Report one batch, again while the service is away; the events' ids keep it from counting twice."""
        self.sent += len(events)
        self.kinds.update(event["kind"] for event in events)
        wait, reason = FIRST_WAIT_S, ""
        for attempt in range(ATTEMPTS):
            asked_s: str | None = None
            try:
                async with self._session.post("/v1/events", json={"events": events}) as response:
                    status, answer = response.status, await json_object(response)
                    asked_s = response.headers.get("Retry-After")
            except (aiohttp.ClientError, TimeoutError) as error:
                status, answer = 0, {"code": type(error).__name__}
            check_allowed(status, answer)
            if 200 <= status < 500 and status != 429:
                self._settle(len(events), status, answer)
                return
            reason = f"{status or 'no answer'} {answer.get('code', '')}".strip()
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(retry_after_s(asked_s, wait))
                wait = min(2 * wait, LONGEST_WAIT_S)
        self.refused[f"undelivered: {reason}"] += len(events)

    def _settle(self, sent: int, status: int, answer: Mapping[str, Any]) -> None:
        """Write down what became of a batch; what the answer does not account for is refused as a whole."""
        refusals = list(answer.get("refused" if status == 202 else "errors", ()))[:sent]
        accepted = min(int(answer.get("accepted", 0)), sent - len(refusals)) if status == 202 else 0
        self.accepted += accepted
        for refusal in refusals:
            field = str(refusal.get("field", "")).rpartition("].")[2]
            self.refused[f"{field}: {refusal.get('reason', '')}"] += 1
        if rest := sent - accepted - len(refusals):
            self.refused[f"{status} {answer.get('code', 'unaccounted')}"] += rest


def events_of(seed: int, user_id: str, request_id: str, reactions: Sequence[Reaction]) -> list[Event]:
    """The events of one slate: what was seen, then what was clicked, watched and liked. Ids are functions of it all."""
    events: list[Event] = []

    def add(kind: str, reaction: Reaction) -> Event:
        name = f"{seed}/{request_id}/{reaction.item_id}/{kind}"
        event: Event = {
            "event_id": str(uuid.uuid5(EVENT_NAMESPACE, name)),
            "kind": kind,
            "request_id": request_id,
            "user_id": user_id,
            "item_id": reaction.item_id,
            "position": reaction.position,
        }
        events.append(event)
        return event

    for reaction in reactions:
        add("impression", reaction)
    for reaction in reactions:
        if reaction.clicked:
            add("click", reaction)
            add("watch", reaction)["value"] = reaction.watch_s
            if reaction.liked:
                add("like", reaction)
    return events


async def json_object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else."""
    try:
        found = await response.json(content_type=None)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def check_allowed(status: int, answer: Mapping[str, Any]) -> None:
    """Raises ApiError where the token was refused: no further request could go better."""
    if status in {401, 403}:
        raise ApiError(status, str(answer.get("code", "")), str(answer.get("detail", "the token was refused")))
