"""What people read about a run: one JSON-ready report from the row and its decisions, for all three ways in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from experiment.evidence import Evidence, MetricEvidence, Reading
from experiment.explain import about_triggered
from experiment.gate import promote_threshold
from experiment.outlook import outlook
from experiment.spec import Arm, ExperimentSpec
from experiment.state import NEWEST, DecisionRow, ExperimentRow, State, Verdict
from experiment.triggered import TriggeredEvidence
from stats.evalues import p_value
from stats.srm import INVALID_LOG_E, WARN_LOG_E

COUNTED = ("requests", "impressions", "clicks", "watch_s", "likes", "dismisses", "slow", "failed", "fallbacks")

Fields = dict[str, Any]


def build_report(row: ExperimentRow, decisions: Sequence[DecisionRow], evidence: Evidence | None = None) -> Fields:
    """Everything known about the current run. decisions: of this run, oldest first, thinned or not.

    evidence: None takes that of the newest look. Fields of a run without a look are empty, never made up.
    """
    looks = [decision for decision in decisions if decision.evidence]
    if evidence is None and looks:
        evidence = Evidence.from_dict(looks[-1].evidence)
    newest = decisions[-1] if decisions else None
    return {
        "key": row.key,
        "description": row.spec.description,
        "run": row.run,
        "version": row.version,
        "state": row.state.value,
        "step": row.step,
        "coverage": coverage(row),
        "steps": _steps(row, decisions),
        "verdict": None if newest is None else newest.verdict.value,
        "reasons": [] if newest is None else [asdict(reason) for reason in newest.reasons],
        "looks": row.looks,
        "created_at": _iso(row.created_at),
        "started_at": _iso(row.started_at),
        "ended_at": _iso(row.ended_at),
        "watermark": _iso(row.watermark),
        "pause_reason": row.pause_reason,
        "promoted_variant": row.promoted_variant,
        "spec_digest": row.spec_digest,
        "exposure_window_s": row.spec.exposure_window_s,
        "arms": [_arm(arm, row.spec, evidence) for arm in row.spec.arms],
        "metrics": [] if evidence is None else [_metric(row.spec, metric) for metric in evidence.metrics],
        "outlook": [] if evidence is None else _outlook(row, evidence),
        "limits": [] if evidence is None else [asdict(limit) | {"broken": limit.broken} for limit in evidence.limits],
        "triggered": None if evidence is None or evidence.triggered is None else _triggered(evidence.triggered),
        "srm": srm(0.0 if evidence is None else evidence.srm_log_e),
        "orphans": 0 if evidence is None else evidence.orphans,
        "late": 0 if evidence is None else evidence.late,
        "decisions": [decision_fields(decision) for decision in decisions[-NEWEST:]],
    }


def build_status(row: ExperimentRow, decisions: Sequence[DecisionRow]) -> Fields:
    """The short form: where the ramp stands, what the last look said, whether it is safe to go on."""
    report = build_report(row, decisions)
    verdict = report["verdict"]
    looked = bool(decisions) and bool(decisions[-1].evidence)  # a person's start says `advance`, too
    harmless = looked and verdict in {Verdict.ADVANCE.value, Verdict.PROMOTE.value}
    return {
        name: report[name]
        for name in ("key", "run", "version", "state", "step", "coverage", "srm", "looks", "promoted_variant")
    } | {
        "steps": len(row.spec.ramp.steps),
        "decision": verdict,
        "reasons": report["reasons"],
        "reason": "; ".join(reason["text"] for reason in report["reasons"]),
        "traffic": {arm["arm"]: arm["users"] for arm in report["arms"]},
        "metrics": {f"{metric['metric']}/{metric['arm']}": metric["effect"] for metric in report["metrics"]},
        "safe_to_advance": row.state is State.RUNNING and harmless and report["srm"]["state"] != "invalid",
    }


def timeseries(spec: ExperimentSpec, decisions: Sequence[DecisionRow]) -> list[Fields]:
    """One point per look and metric: the confidence sequence as it was drawn while the run went on."""
    points = []
    for decision in decisions:
        for metric in decision.evidence.get("metrics", ()):
            picked = ("metric", "arm", "role", "margin", "effect", "low", "high", "bound")
            points.append(
                {"look": decision.look, "at": _iso(decision.at), "step": decision.step_before}
                | {"coverage": spec.ramp.steps[decision.step_before].coverage}
                | {name: metric[name] for name in picked}
                | {"users": metric["treatment"]["users"]}
            )
    return points


def decision_fields(decision: DecisionRow) -> Fields:
    """One line of the audit log, without its evidence."""
    return {
        "look": decision.look,
        "at": _iso(decision.at),
        "actor": decision.actor,
        "verdict": decision.verdict.value,
        "state_before": decision.state_before.value,
        "state_after": decision.state_after.value,
        "step_before": decision.step_before,
        "step_after": decision.step_after,
        "reasons": [asdict(reason) for reason in decision.reasons],
        "code_version": decision.code_version,
    }


def coverage(row: ExperimentRow) -> float:
    """The share of the layer's users that each arm has now; 0 before the start and after the end."""
    live = row.state in {State.RUNNING, State.PAUSED}
    return row.spec.ramp.steps[row.step].coverage if live else 0.0


def srm(log_e: float) -> Fields:
    """The sample-ratio test in words."""
    state = "invalid" if log_e >= INVALID_LOG_E else "warn" if log_e >= WARN_LOG_E else "ok"
    return {"log_e": log_e, "p_value": p_value(max(log_e, 0.0)), "state": state}


def _steps(row: ExperimentRow, decisions: Sequence[DecisionRow]) -> list[Fields]:
    """Each step of the ramp: since when, and why the ramp came to it."""
    reached: dict[int, tuple[str | None, str]] = {}
    if row.started_at is not None:
        reached[0] = (_iso(row.started_at), "the run started")
    for decision in decisions:
        if decision.step_after > decision.step_before:
            reached[decision.step_after] = (_iso(decision.at), "; ".join(reason.text for reason in decision.reasons))
    return [
        {"coverage": step.coverage, "reached_at": at, "reason": reason}
        for step, (at, reason) in (
            (step, reached.get(number, (None, None))) for number, step in enumerate(row.spec.ramp.steps)
        )
    ]


def _arm(arm: Arm, spec: ExperimentSpec, evidence: Evidence | None) -> Fields:
    totals: Mapping[str, float] = {} if evidence is None else evidence.totals[arm.arm]
    return {
        "arm": arm.arm,
        "variant": arm.variant,
        "is_control": arm == spec.control,
        "users": 0 if evidence is None else evidence.exposed[arm.arm],
        "closed_users": 0 if evidence is None else evidence.closed[arm.arm],
        **{column: totals.get(column, 0.0) for column in COUNTED},
        "readings": {} if evidence is None else _readings(arm, spec, evidence),
    }


def _readings(arm: Arm, spec: ExperimentSpec, evidence: Evidence) -> Fields:
    """The arm's own value of every metric."""
    readings: dict[str, Reading] = {}
    for metric in evidence.metrics:
        if arm == spec.control:
            readings[metric.metric] = metric.control
        elif metric.arm == arm.arm:
            readings[metric.metric] = metric.treatment
    return {name: asdict(reading) for name, reading in readings.items()}


def _metric(spec: ExperimentSpec, metric: MetricEvidence) -> Fields:
    latched = metric.latch.superior if metric.role == "success" else metric.latch.promote
    share = latched / promote_threshold(spec)
    return asdict(metric) | {"p_value": p_value(latched), "share_of_evidence": min(1.0, max(0.0, share))}


def _triggered(found: TriggeredEvidence) -> Fields:
    metrics = [asdict(metric) | {"rest_differs": metric.rest_differs} for metric in found.metrics]
    return asdict(found) | {"metrics": metrics, "srm": srm(found.srm_log_e), "text": about_triggered(found)}


def _outlook(row: ExperimentRow, evidence: Evidence) -> list[Fields]:
    return [asdict(found) | {"text": found.text} for found in outlook(row, evidence)]


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
