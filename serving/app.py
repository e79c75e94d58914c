"""The composition root: which adapter stands behind which port, in the replicas of a Serve cluster.

`gateway`, `controller` and `variant` are what a Serve config file imports; `serving.cluster` runs the same.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from experiment.controller import table_of
from experiment.errors import StoreUnavailableError
from experiment.routing import RoutingTable
from experiment.store.assignments_redis import RedisAssignments
from experiment.store.engine import create_engine
from experiment.store.events_sql import SqlEventLog
from experiment.store.experiments_sql import SqlExperimentRepository
from serving.auth import Tokens, load_tokens
from serving.client import CALLS, HttpVariantClient
from serving.control_loop import ControlLoop
from serving.enrol import Enrolments
from serving.errors import ConfigurationError
from serving.inbox import Inbox
from serving.request_id import RequestSigner, load_secret
from serving.serve_variants import ServeVariants
from serving.services import Services
from serving.settings import Settings
from serving.splitter import Splitter
from serving.spool import Spool
from serving.table import TableHolder
from serving.telemetry import Telemetry
from serving.variant_book import VariantBook, checked_name
from serving.variants import variant_app
from serving.writer import EventWriter

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

_log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The service's clock."""
    return datetime.now(UTC)


def code_version() -> str:
    """What is written into every decision."""
    return version("crossfade")


def internal_key(settings: Settings) -> str:
    """What gateways show to variants; it follows from the service's secret."""
    return hmac.new(load_secret(settings.secret_path), b"internal", "sha256").hexdigest()


def gateway(args: Mapping[str, Any]) -> Application:
    """For a Serve config file: `import_path: serving.app:gateway`, args are settings."""
    return gateway_app(Settings(**args))


def controller(args: Mapping[str, Any]) -> Application:
    """For a Serve config file: `import_path: serving.app:controller`, args are settings."""
    return controller_app(Settings(**args))


def variant(args: Mapping[str, Any]) -> Application:
    """For a Serve config file: `import_path: serving.app:variant`, args are name, checkpoint and settings.

    The application must be called `variant-<name>`, with the route prefix `/variants/<name>`, and the gateways'
    variants.json must have the name. The replica verifies the checkpoint. Raises ConfigurationError for a missing
    argument, InvalidRequestError for a bad name.
    """
    given = dict(args)
    try:
        name, checkpoint = str(given.pop("name")), Path(given.pop("checkpoint"))
    except KeyError as error:
        raise ConfigurationError(f"args: {error.args[0]}: is missing") from error
    settings = Settings(**given)
    return variant_app(checked_name(name), checkpoint, internal_key(settings), settings)


def gateway_app(settings: Settings) -> Application:
    """The gateway: the only application that the world may reach."""
    from ray import serve

    deploy = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateway_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=512,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=20,
        health_check_period_s=2,
        logging_config={"enable_access_log": False},
    )
    return deploy(serve.ingress()(Gateway)).bind(settings)


class Gateway:
    """One gateway replica. Ray asks it for its HTTP application once it is constructed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Real adapters behind every port; they start with the application and stop with it."""
        from serving.gateway import build_app

        settings = self._settings
        spool = Spool(settings.spool_dir / _writer_name(), settings.spool_max_bytes, settings.spool_segment_bytes)
        calls = max(CALLS, 2 * settings.variant_replicas)
        client = HttpVariantClient(settings.url, internal_key(settings), calls=calls, most=settings.batch_size)
        services = _services(settings, spool, client)
        return build_app(services, partial(_running, services, spool, client))


def _services(settings: Settings, spool: Spool, client: HttpVariantClient) -> Services:
    engine = create_engine(settings.sql_url)
    repository, event_log = SqlExperimentRepository(engine), SqlEventLog(engine)
    assignments = RedisAssignments.from_url(settings.redis_url or "")
    inbox = Inbox(spool, utc_now)
    signer = RequestSigner(load_secret(settings.secret_path))
    telemetry = Telemetry()
    book = VariantBook(settings.variants_path)
    derive = partial(table_of, repository, settings.default_variant)
    everybody_default = RoutingTable(version=-1, default_variant=settings.default_variant)
    table = TableHolder(assignments, derive, everybody_default, settings.table_poll_s)
    enrolments = Enrolments(assignments, settings.known_users)

    writer = EventWriter(spool, event_log, inbox.low_watermark, settings)
    splitter = Splitter(lambda: table.current, enrolments, client, inbox, signer, settings, utc_now, telemetry.observe)
    telemetry.watch(
        {
            "crossfade_spool_backlog_bytes": ("Events on disk, not yet in SQL", lambda: spool.backlog_bytes),
            "crossfade_spool_quarantined": ("Lines of the spool that were no records", lambda: spool.quarantined),
            "crossfade_lost_exposures": ("Answers given while the spool was full", lambda: splitter.lost_exposures),
            "crossfade_skipped_comparisons": (
                "First requests whose other slate is unknown",
                lambda: splitter.shadow.skipped,
            ),
            "crossfade_owed_enrolments": ("First sights that Redis still has to be told", lambda: enrolments.owed),
            "crossfade_redis_up": ("1 while Redis answers", lambda: table.redis_is_up),
            "crossfade_sql_up": ("1 while SQL takes events", lambda: writer.is_healthy),
            "crossfade_routing_table_version": ("The table that requests are routed by", lambda: table.current.version),
        }
    )

    async def publish() -> None:
        try:
            newest = await asyncio.to_thread(derive)
            table.offer(newest)
            await assignments.publish(newest)
        except StoreUnavailableError as error:
            _log.warning("the controller will publish the routing table: %s", error)

    return Services(
        settings=settings,
        tokens=Tokens(load_tokens(settings.tokens_path)),
        clock=utc_now,
        code_version=code_version(),
        splitter=splitter,
        inbox=inbox,
        writer=writer,
        signer=signer,
        table=table,
        catalogue=book.catalogue(settings.default_variant),
        experiments=repository,
        event_log=event_log,
        assignments=assignments,
        variants=ServeVariants(book, settings, internal_key(settings)),
        publish=publish,
        telemetry=telemetry,
    )


@asynccontextmanager
async def _running(services: Services, spool: Spool, client: HttpVariantClient, _app: FastAPI) -> AsyncIterator[None]:
    """At the end everything acknowledged is in SQL; what SQL did not take stays on disk for the next writer."""
    await services.table.refresh()
    services.table.start()
    services.inbox.start()
    services.writer.start()
    try:
        yield
    finally:
        await services.table.stop()
        await services.splitter.shadow.drain()
        await services.inbox.stop()
        await asyncio.to_thread(services.writer.stop)
        spool.close(remove=spool.backlog_bytes == 0)
        await client.close()


def controller_app(settings: Settings) -> Application:
    """The gate's clock: one replica, no route."""
    from ray import serve

    deploy = serve.deployment(
        name="Controller",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        health_check_period_s=2,
    )
    return deploy(Controller).bind(settings)


class Controller:
    """Runs a `ControlLoop` in a thread; Serve replaces the replica when the thread is dead."""

    def __init__(self, settings: Settings) -> None:
        self._thread = threading.Thread(target=asyncio.run, args=(_control(settings),), name="gate", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Raises when looks are no longer made."""
        if not self._thread.is_alive():
            raise RuntimeError("the gate's thread has ended")


async def _control(settings: Settings) -> None:
    assignments = RedisAssignments.from_url(settings.redis_url or "", timeout_s=2.0)
    repository = SqlExperimentRepository(create_engine(settings.sql_url))
    await ControlLoop(repository, assignments, settings.default_variant, utc_now, code_version()).run()


def _writer_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
