"""The life of a run as a state machine without I/O: what a verdict or a person may change, and what may not follow.

    ready → running ⇄ paused → promoted | rolled_back | stopped

The last three end a run; only `restart` follows them, as a new run with a new seed. Coverage never shrinks in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from experiment.errors import IllegalTransitionError
from experiment.evidence import tau2_of
from experiment.gate import RECOVERED, SIGNAL
from experiment.spec import Arm, ExperimentSpec
from experiment.state import DecisionRow, ExperimentRow, Reason, State, Verdict

MAX_FAILURES = 5
"""Looks in a row that may end in an error before the run is paused."""


class Action(StrEnum):
    """What a person can ask for."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    STOP = "stop"
    RESTART = "restart"


ALLOWED: dict[Action, frozenset[State]] = {
    Action.START: frozenset({State.DRAFT, State.READY}),
    Action.PAUSE: frozenset({State.RUNNING}),
    Action.RESUME: frozenset({State.PAUSED}),
    Action.ADVANCE: frozenset({State.RUNNING}),
    Action.PROMOTE: frozenset({State.RUNNING, State.PAUSED}),
    Action.ROLLBACK: frozenset({State.RUNNING, State.PAUSED}),
    Action.STOP: frozenset({State.DRAFT, State.READY, State.RUNNING, State.PAUSED}),
    Action.RESTART: frozenset({State.PROMOTED, State.ROLLED_BACK, State.STOPPED}),
}

VERDICT_OF: dict[Action, Verdict] = {
    Action.START: Verdict.ADVANCE,
    Action.PAUSE: Verdict.PAUSE,
    Action.RESUME: Verdict.ADVANCE,
    Action.ADVANCE: Verdict.ADVANCE,
    Action.PROMOTE: Verdict.PROMOTE,
    Action.ROLLBACK: Verdict.ROLLBACK,
    Action.STOP: Verdict.HOLD,
    Action.RESTART: Verdict.HOLD,
}
"""Under which verdict a person's action is written into the log of decisions."""


def new_experiment(spec: ExperimentSpec, at: datetime) -> ExperimentRow:
    """The first run of an experiment, ready to start. Its mixture variances are fixed here."""
    return ExperimentRow(
        key=spec.key,
        run=1,
        version=1,
        state=State.READY,
        step=0,
        spec=spec,
        spec_digest=spec.digest,
        tau2=tau2_of(spec),
        latches={},
        srm_log_e=0.0,
        looks=0,
        created_at=at,
        started_at=None,
        step_started_at=None,
        ended_at=None,
        watermark=None,
        pause_reason=None,
    )


def created_by(actor: str, row: ExperimentRow) -> DecisionRow:
    """The first line of an experiment's audit log."""
    return DecisionRow(
        key=row.key,
        run=row.run,
        look=0,
        at=row.created_at,
        actor=actor,
        verdict=Verdict.HOLD,
        state_before=State.DRAFT,
        state_after=row.state,
        step_before=row.step,
        step_after=row.step,
        reasons=(Reason("created", "the specification was accepted"),),
        evidence={},
        spec_digest=row.spec_digest,
        code_version="",
    )


def step(row: ExperimentRow, verdict: Verdict, reasons: Sequence[Reason], now: datetime) -> ExperimentRow:
    """The row after a look. Raises IllegalTransitionError when a finished or unstarted run is judged."""
    if row.state not in {State.RUNNING, State.PAUSED}:
        raise IllegalTransitionError(row.key, row.state, "judge")
    failures = row.failures + 1 if verdict is Verdict.ERROR else 0
    row = replace(row, failures=failures)
    codes = {reason.code for reason in reasons}
    match verdict:
        case Verdict.PROMOTE:
            return _end(row, State.PROMOTED, now, promoted_variant=_winner(row, reasons).variant)
        case Verdict.ROLLBACK:
            return _end(row, State.ROLLED_BACK, now)
        case Verdict.ADVANCE if row.state is State.PAUSED:
            return replace(row, state=State.RUNNING, pause_reason=None) if RECOVERED in codes else row
        case Verdict.ADVANCE:
            return _widen(row, now)
        case Verdict.PAUSE if row.state is State.RUNNING:
            return replace(row, state=State.PAUSED, pause_reason=SIGNAL)
        case Verdict.ERROR if failures >= MAX_FAILURES and row.state is State.RUNNING:
            return replace(row, state=State.PAUSED, pause_reason="repeated_errors")
        case _:
            return row


def act(row: ExperimentRow, action: Action, now: datetime, arm: str | None = None) -> ExperimentRow:
    """The row after a person's action; `arm` names the treatment to promote where there are several.

    Raises IllegalTransitionError when the state, or the last step, does not allow it.
    """
    if row.state not in ALLOWED[action]:
        raise IllegalTransitionError(row.key, row.state, action)
    match action:
        case Action.START:
            return replace(row, state=State.RUNNING, step=0, started_at=now, step_started_at=now)
        case Action.PAUSE:
            return replace(row, state=State.PAUSED, pause_reason="by hand")
        case Action.RESUME:
            return replace(row, state=State.RUNNING, pause_reason=None, failures=0)
        case Action.ADVANCE:
            if row.step + 1 >= len(row.spec.ramp.steps):
                raise IllegalTransitionError(row.key, row.state, action, "it is at its last step")
            return _widen(row, now)
        case Action.PROMOTE:
            return _end(row, State.PROMOTED, now, promoted_variant=_chosen(row, arm).variant)
        case Action.ROLLBACK:
            return _end(row, State.ROLLED_BACK, now)
        case Action.STOP:
            return _end(row, State.STOPPED, now)
        case Action.RESTART:
            return _new_run(row)


def _widen(row: ExperimentRow, now: datetime) -> ExperimentRow:
    return replace(row, step=min(row.step + 1, len(row.spec.ramp.steps) - 1), step_started_at=now)


def _end(row: ExperimentRow, state: State, now: datetime, promoted_variant: str | None = None) -> ExperimentRow:
    return replace(row, state=state, ended_at=now, promoted_variant=promoted_variant, pause_reason=None)


def _new_run(row: ExperimentRow) -> ExperimentRow:
    return replace(
        row,
        run=row.run + 1,
        state=State.READY,
        step=0,
        latches={},
        srm_log_e=0.0,
        looks=0,
        started_at=None,
        step_started_at=None,
        ended_at=None,
        watermark=None,
        pause_reason=None,
        promoted_variant=None,
        failures=0,
    )


def _winner(row: ExperimentRow, reasons: Sequence[Reason]) -> Arm:
    return _chosen(row, next((reason.arm for reason in reasons if reason.arm), None))


def _chosen(row: ExperimentRow, arm: str | None) -> Arm:
    treatments = row.spec.treatments
    if arm is None and len(treatments) == 1:
        return treatments[0]
    found = next((treatment for treatment in treatments if treatment.arm == arm), None)
    if found is None:
        known = ", ".join(treatment.arm for treatment in treatments)
        raise IllegalTransitionError(row.key, row.state, "promote", f"name the arm to promote: {known}")
    return found
