"""The decision: from evidence to a verdict with its reasons. Pure; no step of it is taken anywhere else.

Rollback outranks everything that statistics can say for the treatment, and a broken hard limit outranks statistics.
Promotion asks for proof (intersection-union: every guardrail, no correction), rollback for proof of harm (union: alpha
is split), advancing only for no sign of harm: early steps cannot carry the whole proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime

from experiment.evidence import Evidence, LimitEvidence, MetricEvidence
from experiment.explain import about_harm, about_limit, about_metric, seconds
from experiment.spec import ExperimentSpec
from experiment.state import ExperimentRow, Reason, State, Verdict
from stats.srm import INVALID_LOG_E, WARN_LOG_E

Decision = tuple[Verdict, tuple[Reason, ...]]

INCONCLUSIVE = "inconclusive"
RECOVERED = "signal_recovered"
SIGNAL = "signal_harm"


def decide(spec: ExperimentSpec, row: ExperimentRow, evidence: Evidence, now: datetime) -> Decision:
    """The verdict of one look at a running or paused experiment, with at least one reason."""
    warnings = _srm_warning(evidence)
    if broken := [limit for limit in evidence.limits if limit.broken]:
        return _on_broken_limits(spec, broken)
    if evidence.srm_log_e >= INVALID_LOG_E:
        text = f"users are not split as planned ({_counts(evidence)}): nothing can be concluded until that is explained"
        return Verdict.HOLD, (Reason("srm_invalid", text, bound=INVALID_LOG_E, estimate=evidence.srm_log_e),)
    if not all(evidence.exposed.values()):
        empty = ", ".join(arm for arm, users in evidence.exposed.items() if not users)
        return Verdict.NO_DATA, (Reason("no_data", f"no users yet in {empty}"),)
    if harmed := _harmed(spec, evidence):
        return Verdict.ROLLBACK, harmed
    if signals := _signals(spec, evidence):
        return Verdict.PAUSE, signals
    if row.state is State.PAUSED:
        return _while_paused(row)
    if _elapsed_s(row.started_at, now) >= spec.max_duration_s:
        text = f"inconclusive after {seconds(spec.max_duration_s)}: control stays; this is no proof of harm"
        return Verdict.ROLLBACK, (Reason(INCONCLUSIVE, text),)
    missing = [*_missing_for_step(spec, row, evidence, now)]
    if row.step + 1 < len(spec.ramp.steps):
        if missing:
            return Verdict.HOLD, (*missing, *warnings)
        coverage = spec.ramp.steps[row.step + 1].coverage
        text = f"no sign of harm at {spec.ramp.steps[row.step].coverage:.3g}: widening each arm to {coverage:.3g}"
        return Verdict.ADVANCE, (Reason("step_done", text), *warnings)
    return _at_full_width(spec, row, evidence, now, (*missing, *warnings))


def _at_full_width(
    spec: ExperimentSpec, row: ExperimentRow, evidence: Evidence, now: datetime, open_points: tuple[Reason, ...]
) -> Decision:
    elapsed = _elapsed_s(row.started_at, now)
    if elapsed < spec.minimums.duration_s:
        text = f"running for {seconds(elapsed)} of at least {seconds(spec.minimums.duration_s)} before a promotion"
        open_points = (*open_points, Reason("minimum_duration", text))
    candidates: list[tuple[float, tuple[Reason, ...]]] = []
    unproved: list[Reason] = []
    for arm in spec.treatments:
        deciding = [m for m in evidence.metrics if m.arm == arm.arm and m.role in {"guardrail", "success"}]
        lacking = [_unproved(spec, metric) for metric in deciding if not _proved(spec, metric)]
        unproved += lacking
        if not lacking:
            worst = min(m.low if m.low is not None else -math.inf for m in deciding)
            candidates.append((worst, tuple(_proof(spec, metric) for metric in deciding)))
    if candidates and not [point for point in open_points if point.code != "srm_warning"]:
        return Verdict.PROMOTE, max(candidates, key=lambda candidate: candidate[0])[1]
    return Verdict.HOLD, (*open_points, *unproved) or (Reason("waiting", "waiting for more users"),)


def promote_threshold(spec: ExperimentSpec) -> float:
    """The log e-value that every guardrail must reach, ln(T / alpha) for T treatments."""
    return math.log(1 / spec.promote_alpha)


def rollback_threshold(spec: ExperimentSpec) -> float:
    """The log e-value of harm that is enough for a rollback, ln(K / alpha) for K guardrails of all treatments."""
    return math.log(1 / spec.rollback_alpha)


def _proved(spec: ExperimentSpec, metric: MetricEvidence) -> bool:
    evidence = metric.latch.superior if metric.role == "success" else metric.latch.promote
    return metric.ready and evidence >= promote_threshold(spec)


def _proof(spec: ExperimentSpec, metric: MetricEvidence) -> Reason:
    if metric.role == "success":
        return about_metric(spec, metric, "superior", "proved better")
    return about_metric(spec, metric, "non_inferior", "proved not worse than the margin")


def _unproved(spec: ExperimentSpec, metric: MetricEvidence) -> Reason:
    if not metric.ready:
        return about_metric(spec, metric, "burn_in", "still in the burn-in")
    wanted = "better" if metric.role == "success" else "not worse than the margin"
    return about_metric(spec, metric, "not_proved", f"not yet proved {wanted}")


def _harmed(spec: ExperimentSpec, evidence: Evidence) -> tuple[Reason, ...]:
    threshold = rollback_threshold(spec)
    return tuple(
        about_harm(spec, metric, "harm", "proved worse than the margin allows")
        for metric in evidence.metrics
        if metric.role == "guardrail" and metric.latch.rollback >= threshold
    )


def _signals(spec: ExperimentSpec, evidence: Evidence) -> tuple[Reason, ...]:
    threshold = math.log(1 / spec.alpha.rollback)
    return tuple(
        about_harm(spec, metric, SIGNAL, "a signal of harm")
        for metric in evidence.metrics
        if metric.role == "signal" and metric.ready and metric.log_e_rollback >= threshold
    )


def _on_broken_limits(spec: ExperimentSpec, broken: Sequence[LimitEvidence]) -> Decision:
    """The treatment's failure rolls back; where control fails too, or alone, rolling back would serve people worse."""
    control = [limit for limit in broken if limit.arm == spec.control.arm]
    if control:
        return Verdict.HOLD, tuple(about_limit(limit, "control_unhealthy") for limit in control)
    return Verdict.ROLLBACK, tuple(about_limit(limit, "limit_broken") for limit in broken)


def _while_paused(row: ExperimentRow) -> Decision:
    if row.pause_reason == SIGNAL:
        return Verdict.ADVANCE, (Reason(RECOVERED, "the signal of harm is gone: the ramp goes on"),)
    return Verdict.HOLD, (Reason("paused", f"paused ({row.pause_reason or 'by hand'}); still watching for harm"),)


def _missing_for_step(spec: ExperimentSpec, row: ExperimentRow, evidence: Evidence, now: datetime) -> Iterable[Reason]:
    step = spec.ramp.steps[row.step]
    elapsed = _elapsed_s(row.step_started_at, now)
    if elapsed < step.min_duration_s:
        text = f"at this step for {seconds(elapsed)} of at least {seconds(step.min_duration_s)}"
        yield Reason("step_duration", text)
    fewest = min(evidence.exposed_in_step.values())
    if fewest < step.min_users_per_arm:
        text = f"{fewest} of {step.min_users_per_arm} new users in the smallest arm at this step"
        yield Reason("step_users", text, n=fewest)


def _srm_warning(evidence: Evidence) -> tuple[Reason, ...]:
    if evidence.srm_log_e < WARN_LOG_E:
        return ()
    text = f"the split looks uneven ({_counts(evidence)}): look for lost exposures"
    return (Reason("srm_warning", text, bound=WARN_LOG_E, estimate=evidence.srm_log_e),)


def _counts(evidence: Evidence) -> str:
    return ", ".join(f"{arm}: {users}" for arm, users in evidence.exposed.items())


def _elapsed_s(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else (now - since).total_seconds()
