"""A whole service on this machine, from nothing and back to nothing: Valkey, database, Ray Serve, applications."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from experiment.errors import StoreUnavailableError
from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from experiment.store.migrate import upgrade
from serving.app import controller_app, gateway_app, internal_key
from serving.auth import load_tokens
from serving.embedded import EmbeddedRedis, free_port
from serving.errors import ConfigurationError
from serving.serve_variants import run_target, verify
from serving.settings import Settings
from serving.variant_book import VariantBook
from serving.writer import adopt_orphans

_log = logging.getLogger(__name__)

RAY_FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.01",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
"""Read by Ray when it is imported. The first two make it eight times faster than its defaults. Yours win."""

Say = Callable[[str], None]

_STOP_S = 10.0

_RAYS_AGENT_PORT = 52_365  # free until Ray starts, which takes it for its dashboard agent
_SPAN = 100
"""Ports for the replicas of one cluster: replacements take new ones while old ones are in quarantine."""


class Cluster:
    """`with Cluster(settings, {"bf16": folder, …}) as cluster:` serves at `cluster.url` until the block ends.

    The end is a clean stop: gateways drain into SQL, and no process is left. say: told what is being done.
    """

    def __init__(self, settings: Settings, variants: Mapping[str, Path], say: Say = lambda _: None) -> None:
        self._given, self._variants, self._say = settings, dict(variants), say
        self._redis: EmbeddedRedis | None = None
        self._ray_is_up = False
        self.settings = settings

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.settings.url

    @property
    def tokens(self) -> dict[str, str]:
        """The service's tokens by name."""
        return {name: token for name, (token, _) in load_tokens(self.settings.tokens_path).items()}

    def start(self) -> Self:
        """Raises ConfigurationError naming what is wrong; then nothing is left running."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Drain and end everything that `start` started; no harm when it is called twice."""
        if self._ray_is_up:
            self._say("draining")
            _stop_ray()
            self._ray_is_up = False
            self._store_what_is_left()
        if self._redis is not None:
            self._redis.stop()
            self._redis = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        settings = self._given
        book = VariantBook(settings.variants_path)
        book.add(self._variants)
        variants = book.read()
        book.catalogue(settings.default_variant)
        load_tokens(settings.tokens_path)
        if settings.redis_url is None:
            self._say("starting Valkey")
            self._redis = EmbeddedRedis(settings.home.absolute() / "valkey")
            settings = settings.model_copy(update={"redis_url": self._redis.start()})
        self.settings = settings
        self._say("bringing the database up to date")
        self._migrate()
        self._say("starting Ray Serve")
        self._start_ray()
        self._say(f"deploying the gateway, the controller and {', '.join(variants)}")
        self._deploy(variants)

    def _migrate(self) -> None:
        try:
            upgrade(create_engine(self.settings.sql_url))
        except StoreUnavailableError as error:
            raise ConfigurationError(f"database_url: {error}") from error

    def _start_ray(self) -> None:
        for name, value in (RAY_FLAGS | _own_ports()).items():
            os.environ.setdefault(name, value)
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._ray_is_up = True
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="crossfade",
            _metrics_export_port=self.settings.ray_metrics_port,
        )
        options: dict[str, Any] = {"host": self.settings.host, "port": self.settings.port}
        serve.start(http_options=options)

    def _deploy(self, variants: Mapping[str, Path]) -> None:
        """All applications at once: their checkpoints are verified, and their replicas load, at the same time."""
        from ray import serve

        key = internal_key(self.settings)
        own = [
            serve.RunTarget(gateway_app(self.settings), name="gateway", route_prefix="/"),
            serve.RunTarget(controller_app(self.settings), name="controller", route_prefix=None),
        ]
        verify(variants.values())
        given = [run_target(name, folder, key, self.settings) for name, folder in variants.items()]
        try:
            serve.run_many([*own, *given])
        except RuntimeError as error:
            raise ConfigurationError(f"the applications do not start: {error}") from error

    def _store_what_is_left(self) -> None:
        """Gateways store their own spools as they end; this is for those that were killed."""
        try:
            moved = adopt_orphans(self.settings, SqlEventLog(create_engine(self.settings.sql_url)))
        except StoreUnavailableError as error:
            _log.warning("events stay on disk for the next start: %s", error)
        else:
            if moved:
                self._say(f"stored {moved} events of gateways that did not end by themselves")


def _is_rays(process: psutil.Process) -> bool:
    """Whether a child of this process belongs to Ray, and not to whoever else started something here."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(mark in command for mark in ("ray::", "/ray/", "raylet", "gcs_server", "haproxy"))


def _port_for_proxies() -> int:
    while (port := free_port()) == _RAYS_AGENT_PORT:
        pass
    return port


def _own_ports() -> dict[str, str]:
    """Ports that Ray would fix for all clusters of a machine: free ones, so that several can live side by side."""
    single = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")
    ports = {f"RAY_SERVE_{name}": _port_for_proxies() for name in single}
    for number, protocol in enumerate(("HTTP", "GRPC")):
        first = 20_000 + _SPAN * (2 * (os.getpid() % 50) + number)
        ports[f"RAY_SERVE_DIRECT_INGRESS_MIN_{protocol}_PORT"] = first
        ports[f"RAY_SERVE_DIRECT_INGRESS_MAX_{protocol}_PORT"] = first + _SPAN - 1
    return {name: str(port) for name, port in ports.items()}


def _stop_ray() -> None:
    """Ends Ray and waits until its processes are gone, which `ray.shutdown` itself does not."""
    import ray
    from ray import serve

    processes = [child for child in psutil.Process().children(recursive=True) if _is_rays(child)]
    with contextlib.redirect_stdout(io.StringIO()):  # Ray prints that its own controller was killed, as it always is
        with contextlib.suppress(Exception):  # a cluster that is half up must still go down
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_STOP_S)
