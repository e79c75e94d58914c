"""The report says what the rows say: nothing made up before a look, nothing lost after it, and all of it JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from experiment.evidence import Evidence, weigh
from experiment.gate import promote_threshold
from experiment.report import COUNTED, build_report, build_status, coverage, srm, timeseries
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import NEWEST, DecisionRow, ExperimentRow, Latch, Reason, State, Verdict
from stats.srm import INVALID_LOG_E, WARN_LOG_E
from tests.experiment.factories import NOW, aggregate, look_at, running_row, visitors

REASON = Reason("step_done", "no sign of harm")


def evidence_of(row: ExperimentRow, users: int = 1000, seed: int = 1) -> Evidence:
    rng = np.random.default_rng(seed)
    return weigh(look_at(row, [aggregate(arm, visitors(users, rng)) for arm in ("fp8", "bf16")]))


def decided(row: ExperimentRow, look: int, evidence: Evidence | None = None, **changes: Any) -> DecisionRow:
    """A decision; a look if it has evidence."""
    fields: dict[str, Any] = {
        "key": row.key, "run": row.run, "look": look, "at": NOW + timedelta(seconds=look), "actor": "gate",
        "verdict": Verdict.HOLD, "state_before": State.RUNNING, "state_after": State.RUNNING, "step_before": row.step,
        "step_after": row.step, "reasons": (REASON,), "evidence": {} if evidence is None else evidence.to_dict(),
        "spec_digest": row.spec_digest, "code_version": "1",
    }  # fmt: skip
    return DecisionRow(**(fields | changes))


def arm(report: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in report["arms"] if one["arm"] == name)
    return found


@pytest.fixture
def row(spec: ExperimentSpec) -> ExperimentRow:
    return running_row(spec, step=2)


def test_before_any_look_nothing_is_made_up(row: ExperimentRow) -> None:
    report = build_report(row, [])
    assert (report["verdict"], report["reasons"], report["metrics"], report["limits"]) == (None, [], [], [])
    for found in report["arms"]:
        assert found["users"] == found["closed_users"] == 0
        assert found["readings"] == {}
        assert all(found[column] == 0 for column in COUNTED)
    assert report["srm"] == {"log_e": 0.0, "p_value": 1.0, "state": "ok"}


@pytest.mark.parametrize("users", [0, 1, 1000])
def test_a_report_and_a_status_are_json(row: ExperimentRow, users: int) -> None:
    decisions = [decided(row, 1, evidence_of(row, users))]
    for found in (build_report(row, decisions), build_status(row, decisions), timeseries(row.spec, decisions)):
        json.dumps(found, allow_nan=False)


def test_counts_and_readings_are_those_of_the_newest_look(row: ExperimentRow) -> None:
    old, new = evidence_of(row, 500), evidence_of(row, 900, seed=2)
    report = build_report(row, [decided(row, 1, old), decided(row, 2, new)])
    for name in ("fp8", "bf16"):
        found = arm(report, name)
        assert (found["users"], found["closed_users"]) == (900, 900)
        assert {column: found[column] for column in COUNTED} == {column: new.totals[name][column] for column in COUNTED}
    ctr = next(metric for metric in new.metrics if metric.metric == "ctr")
    assert arm(report, "fp8")["readings"]["ctr"]["value"] == ctr.treatment.value
    assert arm(report, "bf16")["readings"]["ctr"]["value"] == ctr.control.value
    assert [found["is_control"] for found in report["arms"]] == [False, True]
    assert report["metrics"][0]["effect"] == ctr.effect


def test_a_persons_action_is_the_newest_word_and_hides_no_evidence(row: ExperimentRow) -> None:
    by_hand = decided(row, 1, verdict=Verdict.PAUSE, actor="ann", reasons=(Reason("pause", "lunch"),))
    report = build_report(row, [decided(row, 1, evidence_of(row)), by_hand])
    assert (report["verdict"], report["reasons"][0]["text"]) == ("pause", "lunch")
    assert arm(report, "fp8")["users"] == 1000


def test_each_treatment_shows_its_own_readings(document: dict[str, Any]) -> None:
    document["treatments"].append({"arm": "int4", "variant": "int4"})
    document["ramp"]["steps"][-1]["coverage"] = 0.3
    row = running_row(parse_spec(document))
    rng = np.random.default_rng(1)
    arms = [aggregate(name, visitors(300, rng)) for name in ("fp8", "int4", "bf16")]
    evidence = weigh(look_at(row, arms))
    report = build_report(row, [decided(row, 1, evidence)])
    values = [arm(report, name)["readings"]["ctr"]["value"] for name in ("fp8", "int4", "bf16")]
    assert len(set(values)) == 3
    assert values[1] == next(m for m in evidence.metrics if m.arm == "int4").treatment.value


@pytest.mark.parametrize(
    ("state", "covered"),
    [
        (State.READY, False),
        (State.RUNNING, True),
        (State.PAUSED, True),
        (State.PROMOTED, False),
        (State.STOPPED, False),
    ],
)
def test_coverage_is_what_is_routed_now(row: ExperimentRow, state: State, covered: bool) -> None:
    assert coverage(replace(row, state=state)) == (0.10 if covered else 0.0)


def test_steps_say_since_when_and_why(row: ExperimentRow) -> None:
    """A look that went to the step, and a person who skipped one."""
    decisions = [
        decided(row, 1, step_before=0, step_after=1, reasons=(REASON, Reason("more", "and more"))),
        decided(row, 2, step_before=1, step_after=1),
        decided(row, 2, step_before=1, step_after=3, actor="ann", reasons=(Reason("advance", "hurry"),)),
    ]
    steps = build_report(row, decisions)["steps"]
    assert [step["coverage"] for step in steps] == [0.01, 0.05, 0.10, 0.25, 0.5]
    assert row.started_at is not None
    assert (steps[0]["reached_at"], steps[0]["reason"]) == (row.started_at.isoformat(), "the run started")
    assert steps[1]["reason"] == "no sign of harm; and more"
    assert steps[3]["reason"] == "hurry"
    assert [step["reached_at"] for step in (steps[2], steps[4])] == [None, None]


def test_a_run_that_has_not_started_reached_no_step(row: ExperimentRow) -> None:
    ready = replace(row, state=State.READY, started_at=None)
    assert [step["reached_at"] for step in build_report(ready, [])["steps"]] == [None] * 5


def test_a_report_carries_the_newest_decisions_in_order(row: ExperimentRow) -> None:
    decisions = [decided(row, look) for look in range(NEWEST + 5)]
    assert [line["look"] for line in build_report(row, decisions)["decisions"]] == list(range(5, NEWEST + 5))


@pytest.mark.parametrize(
    ("log_e", "state"),
    [
        (-5.0, "ok"),
        (0.0, "ok"),
        (WARN_LOG_E - 1e-9, "ok"),
        (WARN_LOG_E, "warn"),
        (INVALID_LOG_E, "invalid"),
        (900.0, "invalid"),
    ],
)
def test_the_sample_ratio_in_words(log_e: float, state: str) -> None:
    found = srm(log_e)
    assert found["state"] == state
    assert found["p_value"] == pytest.approx(min(1.0, math.exp(-log_e)))


@pytest.mark.parametrize(("latched", "share"), [(-1.0, 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (9.0, 1.0)])
@pytest.mark.parametrize("role", ["guardrail", "success"])
def test_the_share_of_evidence_is_that_of_the_latch_that_decides(
    row: ExperimentRow, role: str, latched: float, share: float
) -> None:
    evidence = evidence_of(row)
    reached = latched * promote_threshold(row.spec)
    latch = Latch(promote=reached) if role == "guardrail" else Latch(superior=reached)
    metric = replace(evidence.metrics[0], role=role, latch=latch)
    found = build_report(row, [], replace(evidence, metrics=(metric,)))["metrics"][0]
    assert found["share_of_evidence"] == pytest.approx(share)
    assert found["p_value"] == pytest.approx(min(1.0, math.exp(-reached)))


def status_after(row: ExperimentRow, *decisions: DecisionRow) -> bool:
    found = build_status(row, decisions)["safe_to_advance"]
    assert isinstance(found, bool)
    return found


def test_it_is_safe_to_advance_when_the_last_look_said_so(row: ExperimentRow) -> None:
    evidence = evidence_of(row)
    assert status_after(row, decided(row, 1, evidence, verdict=Verdict.ADVANCE))
    assert status_after(row, decided(row, 1, evidence, verdict=Verdict.PROMOTE))
    for verdict in set(Verdict) - {Verdict.ADVANCE, Verdict.PROMOTE}:
        assert not status_after(row, decided(row, 1, evidence, verdict=verdict))
    paused = replace(row, state=State.PAUSED)
    assert not status_after(paused, decided(row, 1, evidence, verdict=Verdict.ADVANCE))
    uneven = replace(evidence, srm_log_e=INVALID_LOG_E)
    assert not status_after(row, decided(row, 1, uneven, verdict=Verdict.ADVANCE))


def test_a_person_who_starts_or_advances_has_not_looked(row: ExperimentRow) -> None:
    started = decided(row, 0, verdict=Verdict.ADVANCE, actor="ann", reasons=(Reason("start", "go"),))
    assert not status_after(row)
    assert not status_after(row, started)
    assert not status_after(row, decided(row, 1, evidence_of(row), verdict=Verdict.HOLD), started)


def test_a_status_sums_up_the_report(row: ExperimentRow) -> None:
    found = build_status(row, [decided(row, 1, evidence_of(row), reasons=(REASON, Reason("b", "second")))])
    assert (found["step"], found["steps"], found["coverage"]) == (2, 5, 0.10)
    assert (found["decision"], found["reason"]) == ("hold", "no sign of harm; second")
    assert found["traffic"] == {"fp8": 1000, "bf16": 1000}
    assert set(found["metrics"]) == {"ctr/fp8", "watch_time/fp8"}


def points(row: ExperimentRow, decisions: Sequence[DecisionRow]) -> list[tuple[int, str, float]]:
    return [(point["look"], point["metric"], point["coverage"]) for point in timeseries(row.spec, decisions)]


def test_the_timeseries_has_a_point_for_each_metric_of_each_look(row: ExperimentRow) -> None:
    decisions = [
        decided(row, 0, actor="ann"),
        decided(row, 1, evidence_of(row), step_before=0, step_after=1),
        decided(row, 2, verdict=Verdict.ERROR),
        decided(row, 3, evidence_of(row), step_before=1),
    ]
    assert points(row, decisions) == [
        (1, "ctr", 0.01),
        (1, "watch_time", 0.01),
        (3, "ctr", 0.05),
        (3, "watch_time", 0.05),
    ]
    first, stored = timeseries(row.spec, decisions)[0], decisions[1].evidence["metrics"][0]
    for name in ("effect", "low", "high", "bound", "margin", "role", "arm"):
        assert first[name] == stored[name]
    assert first["users"] == 1000
