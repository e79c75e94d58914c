"""Where reading, deciding and writing meet: one read, one verdict, one write, one publish.

A process that dies between the write and the publish leaves a routing table older than the rows; whoever looks next
publishes it (`table_of` derives it from the rows, so there is nothing to lose).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from experiment import gate
from experiment.evidence import Evidence, latches, weigh
from experiment.ports import ExperimentRepository
from experiment.ramp import VERDICT_OF, Action, act, new_experiment, step
from experiment.routing import RoutingTable, compile_table
from experiment.spec import ExperimentSpec
from experiment.state import GATE, DecisionRow, ExperimentRow, LookInput, Reason, State, Verdict


def look(repository: ExperimentRepository, key: str, now: datetime, code_version: str) -> DecisionRow:
    """Judge a running or paused experiment once and write what follows.

    Raises VersionConflictError when somebody changed it meanwhile (nothing is written: look again),
    StoreUnavailableError, UnknownExperimentError, IllegalTransitionError.
    """
    seen = repository.read_look(key, now)
    evidence, verdict, reasons = judge(seen, now)
    before = seen.row
    after = after_look(seen, evidence, verdict, reasons, now)
    decision = _decision(
        before, after, verdict, reasons, now, GATE, code_version, evidence.to_dict() | {"row": _situation(before)}
    )
    repository.commit(after, decision, before.version)
    return decision


def judge(seen: LookInput, now: datetime) -> tuple[Evidence, Verdict, tuple[Reason, ...]]:
    """The pure half of a look."""
    evidence = weigh(seen)
    verdict, reasons = gate.decide(seen.row.spec, seen.row, evidence, now)
    return evidence, verdict, reasons


def after_look(
    seen: LookInput, evidence: Evidence, verdict: Verdict, reasons: Sequence[Reason], now: datetime
) -> ExperimentRow:
    """The row as the next look finds it."""
    return replace(
        step(seen.row, verdict, reasons, now),
        latches=latches(evidence),
        srm_log_e=evidence.srm_log_e,
        looks=seen.row.looks + 1,
        watermark=_latest(seen.row.watermark, seen.watermark),
    )


def record_failure(
    repository: ExperimentRepository, key: str, error: Exception, now: datetime, code_version: str
) -> DecisionRow:
    """Write a look that could not be made; after several in a row the run is paused."""
    before = repository.get(key)
    reasons = (Reason("look_failed", f"the look failed: {type(error).__name__}: {error}"),)
    after = replace(step(before, Verdict.ERROR, reasons, now), looks=before.looks + 1)
    decision = _decision(before, after, Verdict.ERROR, reasons, now, GATE, code_version, {})
    repository.commit(after, decision, before.version)
    return decision


def perform(
    repository: ExperimentRepository,
    key: str,
    action: Action,
    reason: str,
    actor: str,
    now: datetime,
    code_version: str,
    expected_version: int | None = None,
    arm: str | None = None,
) -> ExperimentRow:
    """Carry out a person's action and write it down.

    Raises IllegalTransitionError, UnknownExperimentError, StoreUnavailableError, and VersionConflictError when the
    experiment is no longer at `expected_version` (None: whatever it is now).
    """
    before = repository.get(key)
    after = act(before, action, now, arm)
    reasons = (Reason(action.value, reason, arm=arm),)
    decision = _decision(before, after, VERDICT_OF[action], reasons, now, actor, code_version, {})
    return repository.commit(after, decision, before.version if expected_version is None else expected_version)


def table_of(repository: ExperimentRepository, default_variant: str) -> RoutingTable:
    """The routing table that follows from what is stored. Its version is read first, so it is never too new."""
    version = repository.routing_version()
    return compile_table(repository.list(), repository.overrides(), default_variant, version)


def replay(spec: ExperimentSpec, decision: DecisionRow) -> tuple[Verdict, tuple[Reason, ...]]:
    """The gate's verdict on a stored look, recomputed from what the look stored: equal unless the code has changed.

    Raises ValueError for a decision that was not a look.
    """
    situation = decision.evidence.get("row")
    if situation is None:
        raise ValueError(f"decision {decision.look} of {decision.key!r} by {decision.actor} was no look of the gate")
    row = replace(
        new_experiment(spec, decision.at),
        state=State(situation["state"]),
        step=situation["step"],
        started_at=_time(situation["started_at"]),
        step_started_at=_time(situation["step_started_at"]),
        pause_reason=situation["pause_reason"],
    )
    return gate.decide(spec, row, Evidence.from_dict(decision.evidence), decision.at)


def _situation(row: ExperimentRow) -> dict[str, Any]:
    """What the gate reads of a row, beside its specification."""
    return {
        "state": row.state.value,
        "step": row.step,
        "started_at": None if row.started_at is None else row.started_at.isoformat(),
        "step_started_at": None if row.step_started_at is None else row.step_started_at.isoformat(),
        "pause_reason": row.pause_reason,
    }


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _decision(
    before: ExperimentRow,
    after: ExperimentRow,
    verdict: Verdict,
    reasons: tuple[Reason, ...],
    now: datetime,
    actor: str,
    code_version: str,
    evidence: Mapping[str, Any],
) -> DecisionRow:
    return DecisionRow(
        key=before.key,
        run=after.run,
        look=after.looks,
        at=now,
        actor=actor,
        verdict=verdict,
        state_before=before.state,
        state_after=after.state,
        step_before=before.step,
        step_after=after.step,
        reasons=reasons,
        evidence=evidence,
        spec_digest=before.spec_digest,
        code_version=code_version,
    )


def _latest(before: datetime | None, now: datetime | None) -> datetime | None:
    """Watermarks only grow: what one look has closed stays closed."""
    return max((time for time in (before, now) if time is not None), default=None)
