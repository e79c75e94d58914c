"""One replica of a variant: batches whose answers no neighbour changes, named refusals, and a health that tells."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from model.errors import ModelError
from model.signals import Request as Known
from model.signals import UserSignals, signals_of
from serving import variants
from serving.client import INTERNAL_HEADER
from serving.errors import InvalidRequestError
from serving.question import Question
from serving.settings import Settings
from serving.variants import MAX_K, USUAL_K, Variant, variant_app

CATALOGUE = [f"i{number}" for number in range(200)]
KEY = "the internal key"


@dataclass(frozen=True)
class Scored:
    item_id: str
    score: float


class Model:
    """Ranks items by the history's length and, like a beam, by how many are asked for: a wider search differs."""

    def __init__(self, catalogue: Sequence[str] = CATALOGUE) -> None:
        self.catalogue = catalogue
        self.calls: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def indexed(self, history: Known[str]) -> Known[str]:
        if unknown := [item for item in signals_of(history).met if item not in self.catalogue]:
            raise ModelError(f"history: unknown item {unknown[0]!r}")
        return history

    def best(self, histories: Sequence[Sequence[str]], k: int) -> list[list[Scored]]:
        self.calls.append((len(histories), k))
        self.threads.add(threading.current_thread().name)
        self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return [
            [Scored(self._item(len(history), k, place), -float(place)) for place in range(k)] for history in histories
        ]

    def _item(self, length: int, width: int, place: int) -> str:
        return self.catalogue[(7 * length + width + place) % len(self.catalogue)]


def batching(**_: Any) -> Callable[[Callable[[list[Any]], Awaitable[list[Any]]]], Callable[[Any], Awaitable[Any]]]:
    """`serve.batch` for one event loop: whoever asks while a batch runs waits for the next one."""

    def decorate(many: Callable[[list[Any]], Awaitable[list[Any]]]) -> Callable[[Any], Awaitable[Any]]:
        waiting: list[tuple[Any, asyncio.Future[Any]]] = []

        async def flush() -> None:
            await asyncio.sleep(0)
            taken, waiting[:] = list(waiting), []
            try:
                answers = await many([asked for asked, _ in taken])
            except Exception as error:
                for _, future in taken:
                    future.set_exception(error)
            else:
                for (_, future), answer in zip(taken, answers, strict=True):
                    future.set_result(answer)

        async def one(asked: Any) -> Any:
            future = asyncio.get_running_loop().create_future()
            waiting.append((asked, future))
            if len(waiting) == 1:
                future.task = asyncio.create_task(flush())  # type: ignore[attr-defined] # keeps it alive
            return await future

        return one

    return decorate


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=SimpleNamespace(batch=batching)))
    monkeypatch.setattr(torch, "set_num_threads", lambda _threads: None)


def variant(model: Model) -> Variant:
    made = Variant("fp8", "/models/fp8", KEY, Settings(batch_size=8), lambda _folder, _device: model)
    model.calls.clear()
    return made


@pytest.fixture
def model() -> Model:
    return Model()


async def ask(asked: Variant, body: bytes = b"", key: str | None = KEY, method: str = "POST") -> tuple[int, Any]:
    """(status, JSON) of one request over HTTP."""
    headers = [] if key is None else [(INTERNAL_HEADER.lower().encode(), key.encode())]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    response = await asked(Request({"type": "http", "method": method, "headers": headers}, receive))
    return response.status_code, json.loads(response.body)


def question(history: Any, k: Any) -> bytes:
    return json.dumps({"questions": [{"history": history, "k": k}]}).encode()


def test_a_replica_has_worked_before_it_is_asked(model: Model) -> None:
    Variant("fp8", "", KEY, Settings(batch_size=8), lambda _folder, _device: model)
    assert sorted(size for size, _ in model.calls) == [1, 8]


class Engine(Model):
    """One that captures graphs beforehand."""

    def warm_up(self, most: int, widths: Sequence[int], longest: int) -> None:
        assert self.calls == []
        self.warmed = (most, list(widths), longest)


def test_an_engine_gets_ready_for_the_sizes_that_will_be_asked_for() -> None:
    engine = Engine(CATALOGUE[:40])
    Variant("fp8", "", KEY, Settings(batch_size=8, history_max=300), lambda _folder, _device: engine)
    assert engine.warmed == (8, [USUAL_K, 40], 300)


@pytest.mark.parametrize("engine", [True, False])
def test_the_engine_can_be_left_out(monkeypatch: pytest.MonkeyPatch, engine: bool) -> None:
    made: dict[str, Any] = {}
    deployment = SimpleNamespace(bind=lambda *args: made.update(load=args[4]))
    serve = SimpleNamespace(deployment=lambda **_: lambda _class: deployment)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=serve))
    monkeypatch.setattr("quant.load.load_recommender", lambda *args, **kwargs: (args, kwargs))
    variant_app("fp8", Path("/models/fp8"), KEY, Settings(variant_engine=engine, beam_width=512))
    expected = {"beam_width": 512, "engine": engine}
    assert made["load"]("/models/fp8", "cuda") == (("/models/fp8", "cuda"), expected)


def test_a_checkpoint_is_searched_with_the_beam_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "quant.load.load_recommender", lambda folder, device, **more: asked.update(more, folder=folder, device=device)
    )
    variants.load_checkpoint("/models/fp8", "cpu", beam_width=512)
    assert asked == {"folder": "/models/fp8", "device": "cpu", "beam_width": 512, "engine": True}


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda")])
def test_the_model_is_loaded_from_its_folder_to_its_device(model: Model, gpus: float, device: str) -> None:
    asked = []

    def load(folder: str, where: str) -> Model:
        asked.append((folder, where))
        return model

    Variant("fp8", "/models/fp8", KEY, Settings(variant_gpus=gpus), load)
    assert asked == [("/models/fp8", device)]


async def test_an_answer_is_the_k_best_with_their_scores(model: Model) -> None:
    status, body = await ask(variant(model), question(["i1", "i2"], 3))
    assert status == 200
    assert body == {"answers": [{"items": [[f"i{14 + USUAL_K + place}", -float(place)] for place in range(3)]}]}


async def test_a_model_is_told_what_is_liked_and_the_profile(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def best(histories: Sequence[Any], k: int) -> list[list[Scored]]:
        told.extend(histories)
        return [[Scored("i1", 0.0)] * k for _ in histories]

    fp8 = variant(model)
    monkeypatch.setattr(model, "best", best)
    await asyncio.gather(
        fp8.answer(Question(["i1"], 2)), fp8.answer(Question(["i1"], 2, ["i2"])),
        fp8.answer(Question(["i1"], 2, profile={"age": "25-34"})),
    )  # fmt: skip
    assert told == [["i1"], UserSignals(["i1"], ["i2"]), UserSignals(["i1"], (), {"age": "25-34"})]


async def test_what_a_model_has_looked_up_is_what_it_ranks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    fp8 = variant(model)
    monkeypatch.setattr(model, "indexed", lambda history: [int(item[1:]) for item in history])
    monkeypatch.setattr(model, "best", lambda known, k: asked.extend(known) or [[Scored("i1", 0.0)] * k for _ in known])
    await fp8.answer(Question(["i7", "i5"], 2))
    assert asked == [[7, 5]]


async def test_what_a_model_cannot_look_up_is_the_askers_mistake_alone(model: Model) -> None:
    asked = [{"history": [], "k": 1, "profile": {"age": "x" * 300}}, {"history": ["i1"], "k": 1}]
    _, answer = await ask(variant(model), json.dumps({"questions": asked}).encode())
    bad, good = answer["answers"]
    assert (bad["field"], len(good["items"])) == ("profile", 1)
    assert "256 characters" in bad["reason"]


async def test_who_asks_together_is_ranked_together_and_answered_apart(model: Model) -> None:
    fp8 = variant(model)
    answers = await asyncio.gather(*(fp8.answer(Question(["i1"] * length, 5)) for length in range(6)))
    assert model.calls == [(6, USUAL_K)]
    assert [answer[0][0] for answer in answers] == [f"i{7 * length + USUAL_K}" for length in range(6)]


questions = st.lists(st.tuples(st.integers(0, 5), st.integers(1, MAX_K)), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(questions)
def test_no_neighbour_changes_an_answer(asked: list[tuple[int, int]]) -> None:
    async def together() -> list[Any]:
        fp8 = variant(Model())
        return await asyncio.gather(*(fp8.answer(Question(["i1"] * length, k)) for length, k in asked))

    async def alone(length: int, k: int) -> Any:
        return await variant(Model()).answer(Question(["i1"] * length, k))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", SimpleNamespace(serve=SimpleNamespace(batch=batching)))
        for answer, (length, k) in zip(asyncio.run(together()), asked, strict=True):
            assert len(answer) == k
            assert answer == asyncio.run(alone(length, k))


async def test_a_small_catalogue_gives_all_that_it_has() -> None:
    assert len(await variant(Model(CATALOGUE[:4])).answer(Question([], 10))) == 4


async def test_the_model_runs_in_a_thread_of_its_own(model: Model) -> None:
    fp8 = variant(model)
    model.threads.clear()
    for _ in range(3):
        await fp8.answer(Question([], 5))
    (name,) = model.threads
    assert name.startswith("model")


@pytest.mark.parametrize(("gpus", "under_way"), [(0.0, 1), (0.5, 2)])
async def test_on_a_gpu_a_batch_is_made_ready_while_another_is_computed(
    model: Model, monkeypatch: pytest.MonkeyPatch, gpus: float, under_way: int
) -> None:
    asked: list[dict[str, Any]] = []

    def recorded(**options: Any) -> Any:
        asked.append(options)
        return batching(**options)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(serve=SimpleNamespace(batch=recorded)))
    made = Variant("fp8", "", KEY, Settings(batch_size=8, variant_gpus=gpus), lambda _folder, _device: model)
    assert [options["max_concurrent_batches"] for options in asked] == [under_way]
    model.calls.clear()
    model.gate.clear()
    answers: list[asyncio.Task[Any]] = []
    try:
        for _ in range(3):
            answers.append(asyncio.create_task(made.answer(Question([], 5))))
            await asyncio.sleep(0.02)
        assert len(model.calls) == under_way
    finally:
        model.gate.set()
    assert [len(answer) for answer in await asyncio.gather(*answers)] == [5, 5, 5]
    made.check_health()


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1], "ä"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_variants_answer_the_gateway_only(model: Model, key: str | None, method: str) -> None:
    status, _ = await ask(variant(model), question([], 5), key=key, method=method)
    assert status == 403
    assert model.calls == []


async def test_a_replica_describes_itself(model: Model) -> None:
    status, body = await ask(variant(model), method="GET")
    assert status == 200
    assert (body["name"], body["checkpoint"], body["items"]) == ("fp8", "/models/fp8", 200)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"\xff", "body"),
        (b'{"k": 3}', "body"),
        (b'{"questions": {}}', "questions"),
    ],
)
async def test_a_body_that_makes_no_sense_is_refused(model: Model, body: bytes, field: str) -> None:
    status, answer = await ask(variant(model), body)
    assert (status, answer["field"]) == (400, field)
    assert model.calls == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"questions": [null]}', "body"),
        (b'{"questions": [{"k": 3}]}', "body"),
        (b'{"questions": [{"history": []}]}', "body"),
        (question("i1", 3), "body"),
        (question([], "3"), "body"),
        (question([], 2.5), "body"),
        (question([], True), "body"),
        (question([["i1"]], 3), "body"),
        (question([1], 3), "body"),
        (b'{"questions": [{"history": [], "k": 3, "liked": "i1"}]}', "body"),
        (b'{"questions": [{"history": [], "k": 3, "profile": {"age": 25}}]}', "body"),
        (b'{"questions": [{"history": [], "k": 3, "profile": ["age"]}]}', "body"),
        (b'{"questions": [{"history": [], "k": 3, "liked": ["i1", "unknown"]}]}', "liked[1]"),
        (question([], 0), "k"),
        (question([], MAX_K + 1), "k"),
        (question(["i1", "unknown"], 3), "history[1]"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_its_field(model: Model, body: bytes, field: str) -> None:
    status, answer = await ask(variant(model), body)
    assert (status, [one["field"] for one in answer["answers"]]) == (200, [field])
    assert model.calls == []


async def test_a_bad_question_leaves_its_neighbours_their_answers(model: Model) -> None:
    asked = [{"history": ["i1"], "k": 1}, {"history": ["unknown"], "k": 1}, None, {"history": [], "k": 2}]
    _, answer = await ask(variant(model), json.dumps({"questions": asked}).encode())
    assert [sorted(one) for one in answer["answers"]] == [
        ["items"],
        ["field", "reason"],
        ["field", "reason"],
        ["items"],
    ]
    assert model.calls == [(2, USUAL_K)]


async def test_a_failing_model_is_told_of_in_each_answer_and_logged_once(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    fp8 = variant(model)
    model.error = RuntimeError("overflow")
    body = json.dumps({"questions": [{"history": [], "k": 1}] * 3}).encode()
    status, answer = await ask(fp8, body)
    assert (status, answer) == (200, {"answers": [{"error": "RuntimeError: overflow"}] * 3})
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["fp8: no answer to 3 questions"]


async def test_a_refusal_is_the_same_for_a_call_by_handle(model: Model) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await variant(model).answer(Question(["unknown"], 3))
    assert caught.value.field == "history[0]"


async def test_a_model_that_keeps_failing_is_unhealthy_until_it_succeeds(model: Model) -> None:
    fp8 = variant(model)
    model.error = RuntimeError("overflow")
    for _ in range(3):
        fp8.check_health()
        with pytest.raises(RuntimeError, match="overflow"):
            await fp8.answer(Question([], 5))
    with pytest.raises(RuntimeError, match="last 3 batches"):
        fp8.check_health()
    model.error = None
    await fp8.answer(Question([], 5))
    fp8.check_health()


async def test_a_model_that_hangs_is_unhealthy(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fp8 = variant(model)
    monkeypatch.setattr(variants, "_STUCK_S", 0.01)
    model.gate.clear()
    asked = asyncio.create_task(fp8.answer(Question([], 5)))
    try:
        while not model.calls:
            await asyncio.sleep(0.001)
        began_s = time.monotonic()
        while time.monotonic() < began_s + 0.02:
            await asyncio.sleep(0.002)
        with pytest.raises(RuntimeError, match="has been running"):
            fp8.check_health()
    finally:
        model.gate.set()
    await asked
    fp8.check_health()
