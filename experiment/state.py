"""The nouns of a run: its state, its row, what a look reads and what it decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from experiment.spec import ExperimentSpec
from stats.moments import Moments

GATE = "gate"
"""The actor of every look; anybody else is a person."""

NEWEST = 200
"""Decisions of a run that are always read and shown, however long the run is."""


class State(StrEnum):
    """Where a run stands. The last three end it; only an explicit restart (a new run) follows them."""

    DRAFT = "draft"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        return self in {State.PROMOTED, State.ROLLED_BACK, State.STOPPED}


class Verdict(StrEnum):
    """What a look, or a person, concluded."""

    ADVANCE = "advance"
    HOLD = "hold"
    PAUSE = "pause"
    ROLLBACK = "rollback"
    PROMOTE = "promote"
    NO_DATA = "no_data"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Latch:
    """Running maxima of a metric's log e-values: evidence once crossed stays crossed."""

    promote: float = 0.0
    rollback: float = 0.0
    superior: float = 0.0


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """One experiment as the SQL store holds it. `version` grows by one with every change (optimistic locking).

    tau2 maps a metric's name to its mixture variance, fixed when the run starts. watermark: every exposure window that
    closed up to here has been read by a look and can never be reopened. promoted_variant: the winner, once promoted.
    failures: looks in a row that ended in an error.
    """

    key: str
    run: int
    version: int
    state: State
    step: int
    spec: ExperimentSpec
    spec_digest: str
    tau2: Mapping[str, float]
    latches: Mapping[str, Latch]
    srm_log_e: float
    looks: int
    created_at: datetime
    started_at: datetime | None
    step_started_at: datetime | None
    ended_at: datetime | None
    watermark: datetime | None
    pause_reason: str | None
    promoted_variant: str | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class ArmAggregate:
    """What the store knows of one arm of one run.

    exposed_by_phase[p]: users first exposed at ramp step p. closed_users: users whose window closed by the watermark.
    moments: metric name -> per-user moments over closed users (numerator x, denominator y).
    totals: plain sums over ALL exposed users (requests, impressions, clicks, watch_s, likes, dismisses, slow, failed,
    fallbacks), for hard limits and for people. triggered, rest: like moments, over the closed users whose slate would,
    or would not, have differed in the other arm at their first request; empty mappings where slates are not compared.
    """

    arm: str
    exposed_by_phase: Sequence[int]
    closed_users: int
    moments: Mapping[str, Moments]
    totals: Mapping[str, float]
    triggered: Mapping[str, Moments] = field(default_factory=dict)
    rest: Mapping[str, Moments] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LookInput:
    """Everything that one look needs, from one read. `watermark`: folded completely up to here (None: unknown)."""

    row: ExperimentRow
    arms: Mapping[str, ArmAggregate]
    watermark: datetime | None
    orphans: int
    late: int


@dataclass(frozen=True, slots=True)
class Reason:
    """One machine-readable reason of a verdict, with a sentence for people.

    estimate, bound and margin are relative to control for metrics, shares of requests for limits; n counts users
    (requests for limits) of the treatment.
    """

    code: str
    text: str
    metric: str | None = None
    arm: str | None = None
    estimate: float | None = None
    bound: float | None = None
    margin: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One look or one human action, stored for ever; `evidence` replays offline."""

    key: str
    run: int
    look: int
    at: datetime
    actor: str
    verdict: Verdict
    state_before: State
    state_after: State
    step_before: int
    step_after: int
    reasons: Sequence[Reason]
    evidence: Mapping[str, Any]
    spec_digest: str
    code_version: str
