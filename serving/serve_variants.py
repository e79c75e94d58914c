"""The variants of a running Serve cluster: one application each, so that adding one restarts nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from serving.client import INTERNAL_HEADER
from serving.errors import InvalidRequestError
from serving.services import VariantStatus
from serving.settings import Settings
from serving.variant_book import VariantBook, checked_name

if TYPE_CHECKING:
    from ray.serve import RunTarget

_ASK_S = 2.0


class ServeVariants:
    """`VariantRegistry` on Ray Serve."""

    def __init__(self, book: VariantBook, settings: Settings, internal_key: str) -> None:
        self._book, self._settings, self._key = book, settings, internal_key

    async def list(self) -> Sequence[VariantStatus]:
        """See `VariantRegistry.list`."""
        folders = await asyncio.to_thread(self._book.read)
        replicas = await asyncio.to_thread(_replicas)
        async with aiohttp.ClientSession(headers={INTERNAL_HEADER: self._key}) as session:
            healthy = await asyncio.gather(*(self._answers(session, name) for name in folders))
        return [
            VariantStatus(name, str(folder), precision_of(folder), replicas.get(application_of(name), 0), answers)
            for (name, folder), answers in zip(folders.items(), healthy, strict=True)
        ]

    async def add(self, name: str, checkpoint: str) -> None:
        """See `VariantRegistry.add`."""
        folder = Path(checkpoint)
        await asyncio.to_thread(deploy, checked_name(name), folder, self._key, self._settings)
        await asyncio.to_thread(self._book.add, {name: folder})

    async def _answers(self, session: aiohttp.ClientSession, name: str) -> bool:
        try:
            timeout = aiohttp.ClientTimeout(total=_ASK_S)
            async with session.get(f"{self._settings.url}/variants/{name}", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


def deploy(name: str, checkpoint: Path, internal_key: str, settings: Settings) -> None:
    """Start one variant's application and wait until it answers. Raises InvalidRequestError for a bad checkpoint."""
    from ray import serve

    verify([checkpoint])
    serve.run_many([run_target(name, checkpoint, internal_key, settings)])


def run_target(name: str, checkpoint: Path, internal_key: str, settings: Settings) -> RunTarget:
    """What Serve is asked to run, of a checkpoint that `verify` has passed. One at a time: Ray pickles globally."""
    from ray.serve import RunTarget

    from serving.variants import variant_app

    application = variant_app(name, checkpoint, internal_key, settings)
    return RunTarget(application, name=application_of(name), route_prefix=f"/variants/{name}")


def verify(checkpoints: Iterable[Path]) -> None:
    """All their sums, at once, without keeping their gigabytes. Raises InvalidRequestError for a bad one."""
    from model.checkpoint_stream import open_checkpoint
    from model.errors import ModelError

    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(open_checkpoint, checkpoints))
    except (ModelError, OSError) as error:
        raise InvalidRequestError("checkpoint", str(error)) from error


def application_of(variant: str) -> str:
    """The name of a variant's Serve application."""
    return f"variant-{variant}"


def precision_of(checkpoint: Path) -> str:
    """What a checkpoint computes in: its quantisation recipe, or BF16, which is how plain ones are stored."""
    try:
        config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unknown"
    quantization = config.get("quantization_config")
    return "bf16" if quantization is None else f"fp8 ({quantization['recipe']['name']})"


def _replicas() -> dict[str, int]:
    """Running replicas by application."""
    from ray import serve

    return {
        name: sum(
            count
            for deployment in application.deployments.values()
            for state, count in deployment.replica_states.items()
            if state == "RUNNING"
        )
        for name, application in serve.status().applications.items()
    }
