"""The API as a stranger meets it: real HTTP through HAProxy, real stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from tests.integration.conftest import Service

pytestmark = pytest.mark.integration

SPEC = """
key: {key}
control: {{arm: bf16, variant: bf16}}
treatments: [{{arm: fp8, variant: fp8}}]
ramp: {{steps: [{{coverage: 0.5, min_users_per_arm: 5, min_duration_s: 1}}]}}
exposure_window_s: 2
latency_objective_ms: 2000
metrics:
  - {{name: ctr, role: guardrail, margin: 0.2, planning: {{baseline: 0.1, relative_sd: 3, users_per_arm: 500}}}}
minimums: {{users_per_arm: 50, clicks_per_arm: 10, duration_s: 3600}}
max_duration_s: 7200
look_interval_s: 0.5
"""


@pytest.fixture
def experiment(service: Service) -> Iterator[str]:
    """A running experiment that will not decide by itself; it is over when the test is."""
    key = f"api-{uuid4().hex[:8]}"
    with service.http("operate") as http:
        created = http.post(
            "/v1/experiments", content=SPEC.format(key=key), headers={"Content-Type": "application/yaml"}
        )
        assert created.status_code == 201, created.text
        started = http.post(f"/v1/experiments/{key}/start", json={"reason": "the test begins"})
        assert started.status_code == 200, started.text
        yield key
        http.post(f"/v1/experiments/{key}/stop", json={"reason": "the test is over"})


def test_promote_needs_an_operate_token_and_answers_twice_the_same(service: Service, experiment: str) -> None:
    path, body = f"/v1/experiments/{experiment}/promote", {"reason": "enough seen"}
    with service.http(None) as http:
        assert http.post(path, json=body).status_code == 401
    with service.http("read") as http:
        assert http.post(path, json=body).status_code == 403
    with service.http("operate") as http:
        first = http.post(path, json=body, headers={"Idempotency-Key": f"once-{experiment}"})
        again = http.post(path, json=body, headers={"Idempotency-Key": f"once-{experiment}"})
        assert first.status_code == again.status_code == 200
        assert first.content == again.content
        assert http.post(path, json=body).status_code == 409


def test_users_keep_their_arm_and_both_arms_answer(service: Service, experiment: str, eventually: Callable) -> None:
    with service.http() as http:

        def arm_of(user: int) -> str | None:
            answer = http.post("/v1/recommend", json={"user_id": f"{experiment}-{user}", "history": ["item-1"], "k": 5})
            assert answer.status_code == 200, answer.text
            assert answer.json()["arm"] == answer.json()["served_arm"]
            return answer.json()["arm"] if answer.json()["experiment"] == experiment else None

        eventually(lambda: arm_of(0) is not None, "the gateway routes by the new experiment", 10)
        first = [arm_of(user) for user in range(60)]
        assert {*first} == {"bf16", "fp8"}
        assert [arm_of(user) for user in range(60)] == first


def test_what_a_user_likes_and_who_they_are_reaches_the_variant(service: Service) -> None:
    with service.http() as http:

        def slate(**known: object) -> list[str]:
            answer = http.post("/v1/recommend", json={"user_id": "signals", "history": ["item-1"], "k": 5, **known})
            assert answer.status_code == 200, answer.text
            return [item["item_id"] for item in answer.json()["items"]]

        first = slate()
        again = slate(liked=first[:1], profile={"age": "25-34"})
        refused = http.post("/v1/recommend", json={"user_id": "signals", "liked": ["item-1", "no item"]})
    assert first[0] not in again, "nobody is shown again what they like already"
    assert len(again) == 5
    assert [error["field"] for error in refused.json()["errors"]] == ["liked[1]"]


def test_events_are_accepted_or_refused_and_accepted_ones_are_stored(
    service: Service, experiment: str, eventually: Callable
) -> None:
    before = service.log.counts()
    with service.http() as http:
        user = f"{experiment}-counts"
        slate = http.post("/v1/recommend", json={"user_id": user, "history": [], "k": 5}).json()

        def event(number: int, kind: str, **changed: object) -> dict[str, object]:
            item = slate["items"][number]["item_id"]
            fields = {"event_id": f"{experiment}-{number}-{kind}", "kind": kind, "request_id": slate["request_id"]}
            return {**fields, "user_id": user, "item_id": item, **changed}

        events = [event(number, "impression") for number in range(5)]
        events += [event(0, "click"), event(0, "watch", value=12.5), event(1, "click", request_id="made-up")]
        answers = [http.post("/v1/events", json={"events": events}) for _ in range(3)]
    for answer in answers:
        assert answer.status_code == 202
        assert answer.json()["accepted"] == 7
        assert [refusal["field"] for refusal in answer.json()["refused"]] == ["events[7].request_id"]

    def grown(name: str) -> int:
        return service.log.counts()[name] - before[name]

    eventually(lambda: grown("duplicates") == 14, "three deliveries are stored, two of them as duplicates")
    assert (grown("impression"), grown("click"), grown("watch")) == (5, 1, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": ""}, "user_id"),
        ({"user_id": "   "}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({}, "user_id"),
        ({"user_id": "u", "k": 0}, "k"),
        ({"user_id": "u", "k": 51}, "k"),
        ({"user_id": "u", "k": "ten"}, "k"),
        ({"user_id": "u", "history": ["item-1", "no-such-item"]}, "history[1]"),
        ({"user_id": "u", "surprise": 1}, "surprise"),
    ],
)
def test_bad_requests_are_problems_that_name_the_field(service: Service, body: dict[str, object], field: str) -> None:
    with service.http() as http:
        answer = http.post("/v1/recommend", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_an_oversized_body_is_refused_with_and_without_an_announced_length(service: Service) -> None:
    with service.http() as http:
        announced = http.post("/v1/recommend", json={"user_id": "u" * 70_000})
        chunked = http.post("/v1/recommend", content=(b'{"user_id": "' + b"u" * 2**14 for _ in range(8)))
    assert announced.status_code == chunked.status_code == 413
    assert announced.json()["code"] == chunked.json()["code"] == "too_large"


def test_a_variant_answers_the_gateway_only(service: Service) -> None:
    assert httpx.post(f"{service.cluster.url}/variants/fp8", json={"history": [], "k": 3}).status_code == 403


def test_variants_are_listed_with_their_precision(service: Service) -> None:
    with service.http("read") as http:
        listed = {variant["name"]: variant for variant in http.get("/v1/variants").json()["variants"]}
    assert listed["bf16"]["precision"] == "bf16"
    assert listed["fp8"]["precision"] == "fp8 (e4m3)"
    assert all(variant["healthy"] and variant["replicas"] == 1 for variant in listed.values())


def test_a_variant_is_added_without_restarting_the_gateway(service: Service) -> None:
    gateway = service.replica("gateway").pid
    checkpoint = str(service.home / "checkpoints" / "bf16")
    with service.http("admin") as http:
        added = http.post("/v1/variants", json={"name": "bf16-b", "checkpoint": checkpoint}, timeout=120)
        assert added.status_code == 201, added.text
        broken = http.post("/v1/variants", json={"name": "broken", "checkpoint": str(service.home)}, timeout=120)
        assert broken.status_code == 422, broken.text
        names = {variant["name"] for variant in http.get("/v1/variants").json()["variants"]}
    assert "bf16-b" in names
    assert "broken" not in names
    assert service.replica("gateway").pid == gateway


def test_many_clients_at_once_are_all_answered(service: Service) -> None:
    with service.http() as http, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> int:
            body = {"user_id": f"crowd-{number}", "history": [f"item-{number % 60}"]}
            return http.post("/v1/recommend", json=body).status_code

        assert set(pool.map(ask, range(200))) == {200}
