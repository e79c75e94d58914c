"""One variant as a Serve application of its own: requests are batched, models run in threads, only we may ask.

The class is plain; `variant_app` makes a deployment of it, so that nothing of Ray is imported before the flags are set.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from starlette.requests import Request
from starlette.responses import Response

from model.errors import ModelError
from model.signals import Request as Known
from model.signals import UserSignals
from serving.client import INTERNAL_HEADER
from serving.errors import InvalidRequestError
from serving.question import Question
from serving.replica_log import log_to_stderr
from serving.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

MAX_K = 50
USUAL_K = 32
"""Up to here one beam width serves all."""

_log = logging.getLogger(__name__)

_BATCHES_ON_GPU = 2
"""Under way at a time: one is made ready while the device computes another. On a CPU both would want the same cores."""

_STUCK_S = 30.0
_FAILURES = 3


class Scored(Protocol):
    """An item and its score; the model's own nouns are among them."""

    @property
    def item_id(self) -> str: ...

    @property
    def score(self) -> float: ...


class Ranker(Protocol):
    """What a variant needs of a model; `model.recommender.Recommender` is one."""

    @property
    def catalogue(self) -> Any: ...

    def indexed(self, history: Known[str], /) -> Any:
        """A request as `best` takes it: looked up once, before it waits. Raises ModelError naming the field."""

    def best(self, known: Sequence[Any], k: int, /) -> Sequence[Sequence[Scored]]: ...


@runtime_checkable
class WarmsUp(Protocol):
    """A ranker that gets ready for the sizes it will be asked for; `model.engine.recommender` has one."""

    def warm_up(self, most: int, widths: Sequence[int], longest: int) -> None: ...


Loader = Callable[[str, str], Ranker]
"""(checkpoint folder, device) -> a model, ready to answer."""


def load_checkpoint(folder: str, device: str, *, beam_width: int, engine: bool = True) -> Ranker:
    """The model of any checkpoint, plain or quantised; on a GPU the engine answers, where it can run the model."""
    from quant.load import load_recommender

    return load_recommender(folder, device, beam_width=beam_width, engine=engine)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question on its way to the model: what is known, as the model has indexed it, and how many items."""

    known: Any
    k: int


class Variant:
    """One replica. `answer` serves deployment handles, calls over HTTP land in `__call__`."""

    def __init__(self, name: str, checkpoint: str, internal_key: str, settings: Settings, load: Loader) -> None:
        from ray import serve

        self._name, self._checkpoint, self._key = name, checkpoint, internal_key.encode()
        log_to_stderr()
        began_s = time.monotonic()
        _limit_threads(settings.variant_threads)
        self._model = load(checkpoint, "cuda" if settings.variant_gpus > 0 else "cpu")
        _log.info("%s: loaded after %.1f s", name, time.monotonic() - began_s)
        batches = _BATCHES_ON_GPU if settings.variant_gpus > 0 else 1
        self._threads = ThreadPoolExecutor(batches, thread_name_prefix="model")
        self._failures = 0
        self._begun_s: list[float] = []  # of the batches that are under way
        self._batched: Callable[[_Asked], Any] = serve.batch(
            max_batch_size=settings.batch_size,
            batch_wait_timeout_s=settings.batch_wait_s,
            max_concurrent_batches=batches,
        )(self._answer_many)
        if isinstance(self._model, WarmsUp):
            items = len(self._model.catalogue)
            widths = [min(USUAL_K, items), min(MAX_K, items)]
            self._model.warm_up(settings.batch_size, widths, settings.history_max)
        for size in {1, settings.batch_size}:
            self._rank([_Asked(self._model.indexed([]), 1)] * size)
        _log.info("%s: ready after %.1f s", name, time.monotonic() - began_s)

    async def answer(self, question: Question) -> list[tuple[str, float]]:
        """The best items and their scores. Raises InvalidRequestError naming the field."""
        if not 1 <= question.k <= MAX_K:
            raise InvalidRequestError("k", f"must be in 1..{MAX_K}, got {question.k}")
        try:
            known = self._model.indexed(_known(question))
        except ModelError as error:
            question.require_known(self._model.catalogue)  # says where it stands
            name, _, reason = str(error).partition(": ")
            raise InvalidRequestError(name, reason) from error
        items: list[tuple[str, float]] = await self._batched(_Asked(known, question.k))
        return items[: question.k]

    async def __call__(self, request: Request) -> Response:
        given = request.headers.get(INTERNAL_HEADER, "").encode()
        if not hmac.compare_digest(given, self._key):
            return _json({"detail": "variants answer the gateway only"}, 403)
        if request.method == "GET":
            return _json(self.describe())
        try:
            questions = _questions(await request.body())
        except InvalidRequestError as error:
            return _json({"field": error.field, "reason": error.reason}, 400)
        return _json({"answers": await asyncio.gather(*map(self._answer_one, questions))})

    async def _answer_one(self, question: Any) -> dict[str, Any]:
        """What one of several questions gets: items, or what is wrong with it, or that the model failed."""
        try:
            return {"items": await self.answer(Question.of(question))}
        except InvalidRequestError as error:
            return {"field": error.field, "reason": error.reason}
        except Exception as error:  # of its batch, which has logged it
            return {"error": f"{type(error).__name__}: {error}"}

    def describe(self) -> dict[str, Any]:
        """What this replica serves."""
        return {
            "name": self._name,
            "checkpoint": self._checkpoint,
            "items": len(self._model.catalogue),
            "pid": os.getpid(),
        }

    def check_health(self) -> None:
        """Raises when the model keeps failing or hangs; Serve then replaces the replica."""
        if self._failures >= _FAILURES:
            raise RuntimeError(f"{self._name}: the last {self._failures} batches failed")
        since_s = min(self._begun_s, default=None)
        if since_s is not None and time.monotonic() - since_s > _STUCK_S:
            raise RuntimeError(f"{self._name}: a batch has been running for more than {_STUCK_S:g} s")

    async def _answer_many(self, asked: list[_Asked]) -> list[list[tuple[str, float]]]:
        loop = asyncio.get_running_loop()
        begun_s = time.monotonic()
        self._begun_s.append(begun_s)
        try:
            ranked = await loop.run_in_executor(self._threads, self._rank, asked)
        except Exception:
            self._failures += 1
            _log.exception("%s: no answer to %d questions", self._name, len(asked))
            raise
        finally:
            self._begun_s.remove(begun_s)
        self._failures = 0
        return ranked

    def _rank(self, asked: list[_Asked]) -> list[list[tuple[str, float]]]:
        """Two fixed lengths, whatever was asked: a longer list searches wider, so a neighbour could change yours."""
        answers: list[list[tuple[str, float]]] = [[] for _ in asked]
        for least, most in ((1, USUAL_K), (USUAL_K + 1, MAX_K)):
            members = [place for place, one in enumerate(asked) if least <= one.k <= most]
            if members:
                width = min(most, len(self._model.catalogue))
                ranked = self._model.best([asked[place].known for place in members], width)
                for place, items in zip(members, ranked, strict=True):
                    answers[place] = [(item.item_id, item.score) for item in items]
        return answers


def variant_app(
    name: str, checkpoint: Path, internal_key: str, settings: Settings, load: Loader | None = None
) -> Application:
    """The Serve application of one variant; it is published at `/variants/<name>`."""
    from ray import serve

    load = load or partial(load_checkpoint, beam_width=settings.beam_width, engine=settings.variant_engine)
    deploy = serve.deployment(
        num_replicas=settings.variant_replicas,
        ray_actor_options={"num_cpus": 0, "num_gpus": settings.variant_gpus},
        max_ongoing_requests=8 * settings.batch_size,
        max_queued_requests=32 * settings.batch_size,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        health_check_period_s=2,
        health_check_timeout_s=10,
        logging_config={"enable_access_log": False},
    )
    return deploy(Variant).bind(name, str(checkpoint), internal_key, settings, load)


def _limit_threads(threads: int) -> None:
    """As many torch threads as set, and no more: replicas share the machine."""
    import torch

    torch.set_num_threads(threads)


def _questions(body: bytes) -> list[Any]:
    try:
        questions = json.loads(body)["questions"]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequestError("body", f"needs questions: {error!r}") from error
    if not isinstance(questions, list):
        raise InvalidRequestError("questions", "must be a list")
    return questions


def _known(question: Question) -> Known[str]:
    """What is known of the user, as a model reads it."""
    if not question.liked and not question.profile:
        return question.history
    return UserSignals(question.history, question.liked, question.profile)


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")
