"""What the core asks of the world. Each port has a real adapter and an in-memory one that pass one contract suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from experiment.events import Record
from experiment.feedback import LoggedSlate, Span
from experiment.routing import RoutingTable
from experiment.spec import ExperimentSpec
from experiment.state import DecisionRow, ExperimentRow, LookInput

Clock = Callable[[], datetime]
"""Returns an aware UTC time."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one append did: rows that were new, and records whose id was known already."""

    fresh: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The arm that Redis keeps for a user, the table version that first assigned it, and whether that was just now."""

    arm: str
    epoch: int
    first: bool


class EventLog(Protocol):
    """The SQL side of the event path. All methods are blocking; callers run them in a thread."""

    def append(self, records: Sequence[Record]) -> Ingested:
        """Store, deduplicate, attribute and fold, in one transaction. Raises StoreUnavailableError."""

    def heartbeat(self, writer: str, flushed_through: datetime) -> None:
        """Say that every record that `writer` accepted up to this time is in the store (the source of watermarks)."""

    def retire(self, writer: str) -> None:
        """Forget a writer whose spool is empty for good."""

    def counts(self) -> Mapping[str, int]:
        """Rows per record kind and per interaction status, and `duplicates`; keys: served, impression, click, watch,
        like, dismiss, pending, counted, repeat, late, unenrolled, duplicates."""


class FeedbackLog(Protocol):
    """The event log as post-training reads it. Blocking."""

    def count(self, span: Span) -> int:
        """How many slates `read` would give. Raises StoreUnavailableError."""

    def read(self, span: Span) -> Iterator[LoggedSlate]:
        """Requests whose slate was logged, all of a user one after the other, each user's in the order of time.

        One consistent snapshot, in pages: memory does not grow with the log. Raises StoreUnavailableError.
        """


class ExperimentRepository(Protocol):
    """The truth about experiments. Every change is `… WHERE version = expected` and writes one decision row with it."""

    def create(self, spec: ExperimentSpec, at: datetime, actor: str) -> ExperimentRow:
        """A new experiment in READY. Raises ExperimentExistsError."""

    def get(self, key: str) -> ExperimentRow:
        """Raises UnknownExperimentError."""

    def list(self) -> Sequence[ExperimentRow]:
        """All experiments, newest first."""

    def read_look(self, key: str, at: datetime) -> LookInput:
        """State and aggregates at the watermark, from one consistent read."""

    def commit(self, after: ExperimentRow, decision: DecisionRow, expected_version: int) -> ExperimentRow:
        """Write the row and its decision in one transaction; returns the row at version expected_version + 1.

        Raises VersionConflictError if somebody was faster, and writes nothing then.
        """

    def decisions(self, key: str, run: int | None = None, thinned_to: int | None = None) -> Sequence[DecisionRow]:
        """Oldest first; run None means the current one.

        thinned_to: about as many looks, evenly spread, for long runs. What a person did, what changed the state or the
        step, and the newest NEWEST decisions are there in any case.
        """

    def routing_version(self) -> int:
        """Grows with every commit that can change the routing (state, run, step, overrides)."""

    def overrides(self) -> Mapping[str, Mapping[str, str]]:
        """experiment key -> user id -> arm name."""

    def set_override(self, key: str, user_id: str, arm: str | None, at: datetime, actor: str) -> None:
        """Force an arm for a user (None lifts it). Overridden users are never analysed."""

    def remember(self, idempotency_key: str, request_digest: str, response: Mapping[str, Any], at: datetime) -> None:
        """Keep an answer for its idempotency key."""

    def recall(self, idempotency_key: str) -> tuple[str, Mapping[str, Any]] | None:
        """(request digest, answer) kept for the key, or None."""


class AssignmentStore(Protocol):
    """First assignments, in Redis. Coroutines: they sit on the request path. All raise StoreUnavailableError."""

    async def assign_if_absent(self, experiment: str, run: int, user_id: str, arm: str, epoch: int) -> Enrolment:
        """Atomic on the server: the first caller's arm wins for ever."""

    async def publish(self, table: RoutingTable) -> None:
        """Make the table known, unless a newer one is there already."""

    async def read_table(self) -> RoutingTable | None:
        """The newest published table."""
