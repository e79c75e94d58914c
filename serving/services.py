"""What the routes of one gateway share. Built by `serving.app`, read by the routers from `app.state.services`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from starlette.requests import Request

from serving.idempotency import Turns

if TYPE_CHECKING:
    from experiment.ports import AssignmentStore, EventLog, ExperimentRepository
    from serving.auth import Tokens
    from serving.inbox import Inbox
    from serving.request_id import RequestSigner
    from serving.settings import Settings
    from serving.splitter import Splitter
    from serving.table import TableHolder
    from serving.telemetry import Telemetry
    from serving.writer import EventWriter


@dataclass(frozen=True, slots=True)
class VariantStatus:
    """One variant as the cluster reports it."""

    name: str
    checkpoint: str
    precision: str
    replicas: int
    healthy: bool


class VariantRegistry(Protocol):
    """The variants that are deployed."""

    async def list(self) -> Sequence[VariantStatus]:
        """All of them, by name."""

    async def add(self, name: str, checkpoint: str) -> None:
        """Deploy another one beside the running gateway. Raises ConfigurationError naming what is wrong."""


class Items(Protocol):
    """The catalogue, as far as the edge needs it: is this item known?"""

    def __contains__(self, item_id: object) -> bool: ...


@dataclass(slots=True)
class Services:
    """The parts behind the HTTP API."""

    settings: Settings
    tokens: Tokens
    clock: Callable[[], datetime]
    code_version: str
    splitter: Splitter
    inbox: Inbox
    writer: EventWriter
    signer: RequestSigner
    table: TableHolder
    catalogue: Items
    experiments: ExperimentRepository
    event_log: EventLog
    assignments: AssignmentStore
    variants: VariantRegistry
    publish: Callable[[], Awaitable[None]]
    telemetry: Telemetry
    turns: Turns = field(default_factory=Turns)


async def services_of(request: Request) -> Services:
    """`of_request` as a dependency."""
    return of_request(request)


def of_request(request: Request) -> Services:
    """The services of the application that received this request."""
    found: Services = request.app.state.services
    return found
