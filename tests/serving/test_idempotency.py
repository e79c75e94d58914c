"""Once under a key: the first success is the answer, errors may be tried again, and nobody else's key is mine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Response

from experiment.errors import IllegalTransitionError, StoreUnavailableError
from experiment.store.memory import MemoryExperimentRepository, MemoryTables
from serving.idempotency import MAX_KEY, Turns, once
from serving.problems import Problem
from serving.services import Services

NOW = datetime(2026, 11, 23, tzinfo=UTC)


class Repository(MemoryExperimentRepository):
    down = False

    def remember(self, idempotency_key: str, request_digest: str, response: Mapping[str, Any], at: datetime) -> None:
        if self.down:
            raise StoreUnavailableError("away")
        super().remember(idempotency_key, request_digest, response, at)


class Act:
    """Counts how often it acts; `errors` come before its successes."""

    def __init__(self, *errors: Exception) -> None:
        self.done = 0
        self.errors = list(errors)

    async def __call__(self) -> tuple[str, dict[str, str]]:
        await asyncio.sleep(0.001)
        if self.errors:
            raise self.errors.pop(0)
        self.done += 1
        return f'{{"time":{self.done}}}', {"ETag": f'"{self.done}"'}


def gateway(repository: MemoryExperimentRepository | None = None) -> Services:
    """One gateway's services; gateways that share a repository share a database."""
    repository = repository or Repository(MemoryTables())
    return cast("Services", SimpleNamespace(turns=Turns(), experiments=repository, clock=lambda: NOW))


def said(response: Response) -> tuple[int, bytes, str]:
    return response.status_code, bytes(response.body), response.headers["etag"]


@pytest.fixture
def services() -> Services:
    return gateway()


async def test_the_first_answer_is_the_answer_from_then_on(services: Services) -> None:
    act = Act()
    answers = [said(await once(services, "me", "k", b"promote", act)) for _ in range(3)]
    assert answers == [(200, b'{"time":1}', '"1"')] * 3
    assert act.done == 1


async def test_many_at_once_act_once(services: Services) -> None:
    act = Act()
    answers = await asyncio.gather(*(once(services, "me", "k", b"promote", act) for _ in range(20)))
    assert act.done == 1
    assert len({said(answer) for answer in answers}) == 1


async def test_without_a_key_every_request_acts(services: Services) -> None:
    act = Act()
    for _ in range(3):
        await once(services, "me", None, b"promote", act)
    assert act.done == 3


async def test_different_keys_act_apart_and_at_the_same_time(services: Services) -> None:
    waits = asyncio.Barrier(2)

    async def act() -> tuple[str, dict[str, str]]:
        await waits.wait()
        return "{}", {}

    calls = asyncio.gather(*(once(services, "me", key, b"promote", act) for key in ("a", "b")))
    await asyncio.wait_for(calls, 5)


async def test_one_key_for_two_requests_is_refused(services: Services) -> None:
    act = Act()
    await once(services, "me", "k", b"promote", act)
    with pytest.raises(Problem) as caught:
        await once(services, "me", "k", b"rollback", act)
    assert (caught.value.status, caught.value.code) == (422, "idempotency_mismatch")
    assert caught.value.errors[0][0] == "Idempotency-Key"
    assert act.done == 1


@pytest.mark.parametrize(
    ("mine", "yours"), [(("me", "k"), ("you", "k")), (("a:b", "c"), ("a", "b:c")), (("ab", "c"), ("a", "bc"))]
)
async def test_nobody_elses_key_is_mine(services: Services, mine: tuple[str, str], yours: tuple[str, str]) -> None:
    act = Act()
    await once(services, *mine, b"promote", act)
    await once(services, *yours, b"promote", act)
    assert act.done == 2


@pytest.mark.parametrize("key", ["", "   ", "k" * (MAX_KEY + 1)])
async def test_an_impossible_key_is_refused_by_name_and_nothing_happens(services: Services, key: str) -> None:
    act = Act()
    with pytest.raises(Problem) as caught:
        await once(services, "me", key, b"promote", act)
    assert caught.value.status == 422
    assert caught.value.errors[0][0] == "Idempotency-Key"
    assert act.done == 0


async def test_a_key_of_full_length_is_taken_whoever_asks(services: Services) -> None:
    assert (await once(services, "a long name", "k" * MAX_KEY, b"promote", Act())).status_code == 200


@pytest.mark.parametrize("error", [IllegalTransitionError("e", "ready", "promote"), RuntimeError("a bug")], ids=repr)
async def test_an_error_may_be_tried_again(services: Services, error: Exception) -> None:
    act = Act(error)
    with pytest.raises(type(error)):
        await once(services, "me", "k", b"promote", act)
    assert said(await once(services, "me", "k", b"promote", act))[1] == b'{"time":1}'


async def test_another_gateways_answer_is_given_where_this_one_was_too_slow() -> None:
    """Both act; the second is refused by the store, finds the first one's answer and gives that."""
    repository = Repository(MemoryTables())
    here, there = gateway(repository), gateway(repository)

    async def refused() -> tuple[str, dict[str, str]]:
        await once(there, "me", "k", b"promote", Act())
        raise IllegalTransitionError("e", "promoted", "promote")

    assert said(await once(here, "me", "k", b"promote", refused)) == (200, b'{"time":1}', '"1"')


async def test_what_was_done_is_told_even_if_it_cannot_be_kept() -> None:
    repository = Repository(MemoryTables())
    repository.down = True
    assert said(await once(gateway(repository), "me", "k", b"promote", Act()))[0] == 200


async def test_locks_do_not_pile_up(services: Services) -> None:
    for number in range(50):
        await once(services, "me", f"k{number}", b"promote", Act())
    assert len(services.turns._locks) == 0
