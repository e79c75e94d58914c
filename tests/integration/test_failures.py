"""The promises about failures, each with the real part really killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import pytest

from tests.integration.conftest import Service
from tests.integration.test_api import SPEC

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def experiment(service: Service) -> Iterator[str]:
    """One running experiment for all failures."""
    key = f"failures-{uuid4().hex[:8]}"
    with service.http("operate") as http:
        spec = SPEC.format(key=key)
        http.post("/v1/experiments", content=spec, headers={"Content-Type": "application/yaml"}).raise_for_status()
        http.post(f"/v1/experiments/{key}/start", json={"reason": "the tests begin"}).raise_for_status()
        yield key
        http.post(f"/v1/experiments/{key}/stop", json={"reason": "the tests are over"})


def ask(http: httpx.Client, user: str) -> dict:
    answer = http.post("/v1/recommend", json={"user_id": user, "history": ["item-1"], "k": 5})
    assert answer.status_code == 200, answer.text
    return answer.json()


def treated(http: httpx.Client, experiment: str) -> list[str]:
    """Some users of the treatment arm."""
    users = [f"{experiment}-{number}" for number in range(24)]
    return [user for user in users if ask(http, user)["arm"] == "fp8"]


def test_control_answers_while_the_candidate_is_dead(service: Service, experiment: str, eventually: Callable) -> None:
    with service.http() as http:
        eventually(lambda: ask(http, f"{experiment}-0")["experiment"] == experiment, "the experiment is routed")
        users = treated(http, experiment)
        os.kill(service.replica("variant-fp8").pid, signal.SIGKILL)
        began_s = time.monotonic()
        answers = [ask(http, user) for user in users]
        assert time.monotonic() - began_s < 2.5 * len(users)
        assert {answer["arm"] for answer in answers} == {"fp8"}
        assert "bf16" in {answer["served_arm"] for answer in answers}
        eventually(lambda: ask(http, users[0])["served_arm"] == "fp8", "the arm is back and its breaker closed", 60)


def test_users_keep_their_arms_without_redis(service: Service, experiment: str, eventually: Callable) -> None:
    redis = service.cluster._redis
    assert redis is not None
    with service.http() as http:
        before = {f"{experiment}-{number}": ask(http, f"{experiment}-{number}")["arm"] for number in range(20)}
        port = redis.port
        redis.kill()
        try:
            during = {user: ask(http, user) for user in before}
            fresh = [f"{experiment}-fresh-{number}" for number in range(10)]
            met = {user: ask(http, user) for user in fresh}
        finally:
            redis._wanted_port = port
            redis.start()
        assert {user: answer["arm"] for user, answer in during.items()} == before
        assert {answer["reason"] for answer in met.values()} == {"STALE"}
        eventually(lambda: ask(http, f"{experiment}-{uuid4().hex}")["reason"] == "SPLIT", "Redis is used again")
        assert {user: ask(http, user)["arm"] for user in fresh} == {user: met[user]["arm"] for user in fresh}


def test_events_survive_an_outage_of_sql(service: Service, experiment: str, eventually: Callable) -> None:
    before = service.log.counts()
    users = [f"{experiment}-outage-{number}" for number in range(10)]
    with service.http() as http:
        slates = [ask(http, user) for user in users]
        service.postgres.stop(signal.SIGQUIT)
        try:
            accepted = sum(_report(http, user, slate) for user, slate in zip(users, slates, strict=True))
            assert ask(http, users[0])["items"]
        finally:
            service.postgres.start()
    assert accepted == 20

    def stored() -> int:
        counts = service.log.counts()
        return counts["impression"] + counts["click"] - before["impression"] - before["click"]

    eventually(lambda: stored() == accepted, "what was acknowledged during the outage is stored")
    time.sleep(1.0)
    assert stored() == accepted


def test_what_a_killed_gateway_acknowledged_is_stored(service: Service, experiment: str, eventually: Callable) -> None:
    before = service.log.counts()
    users = [f"{experiment}-kill-{number}" for number in range(20)]
    with service.http() as http:
        slates = [ask(http, user) for user in users]
        service.postgres.stop(signal.SIGQUIT)  # so that the acknowledged events are on disk only
        try:
            accepted = sum(_report(http, user, slate) for user, slate in zip(users, slates, strict=True))
            os.kill(service.replica("gateway").pid, signal.SIGKILL)
        finally:
            service.postgres.start()
        eventually(lambda: _answers(http, users[0]), "a new gateway answers", 60)

    def stored() -> int:
        counts = service.log.counts()
        return counts["impression"] + counts["click"] - before["impression"] - before["click"]

    eventually(lambda: stored() == accepted, "the new gateway stored what the old one had acknowledged", 60)


def test_looks_go_on_after_the_controller_was_killed(service: Service, experiment: str, eventually: Callable) -> None:
    def looks(http: httpx.Client) -> int:
        return int(http.get(f"/v1/experiments/{experiment}/report").json()["looks"])

    with service.http("read") as http:
        eventually(lambda: looks(http) > 0, "the gate looks")
        os.kill(service.replica("controller").pid, signal.SIGKILL)
        seen = looks(http)
        eventually(lambda: looks(http) > seen + 1, "the gate looks again", 60)


def test_a_redis_that_lost_everything_is_filled_again(service: Service, experiment: str, eventually: Callable) -> None:
    import redis

    client = redis.Redis.from_url(service.cluster.settings.redis_url or "")
    with service.http() as http:
        arm = ask(http, f"{experiment}-1")["arm"]
        client.flushall()
        eventually(lambda: bool(client.exists("crossfade:table")), "the routing table is published again")
        assert ask(http, f"{experiment}-1")["arm"] == arm


def _report(http: httpx.Client, user: str, slate: dict) -> int:
    """One impression and one click; returns how many events were accepted."""
    fields = {"request_id": slate["request_id"], "user_id": user, "item_id": slate["items"][0]["item_id"]}
    events = [{"event_id": f"{slate['request_id']}-{kind}", "kind": kind, **fields} for kind in ("impression", "click")]
    answer = http.post("/v1/events", json={"events": events})
    assert answer.status_code == 202, answer.text
    return int(answer.json()["accepted"])


def _answers(http: httpx.Client, user: str) -> bool:
    try:
        return http.post("/v1/recommend", json={"user_id": user}).status_code == 200
    except httpx.HTTPError:
        return False
