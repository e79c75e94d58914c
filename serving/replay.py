"""Stored looks, judged again: does today's code still come to the verdicts that were acted on?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from experiment.controller import replay
from experiment.spec import parse_spec
from experiment.state import DecisionRow, Reason, State, Verdict


@dataclass(frozen=True, slots=True)
class Replayed:
    """One look: the verdict that was stored, and the one that comes out now with its reasons."""

    look: int
    stored: Verdict
    verdict: Verdict
    reasons: Sequence[Reason]
    same: bool


def replayed(experiment: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]]) -> Iterator[Replayed]:
    """Every look among an experiment's decisions, both as the API gives them; actions of people are skipped."""
    spec = parse_spec(experiment["spec"])
    for line in decisions:
        if "row" in line["evidence"]:
            decision = _decision(experiment, line)
            verdict, reasons = replay(spec, decision)
            same = verdict is decision.verdict and tuple(reasons) == tuple(decision.reasons)
            yield Replayed(decision.look, decision.verdict, verdict, reasons, same)


def _decision(experiment: Mapping[str, Any], line: Mapping[str, Any]) -> DecisionRow:
    return DecisionRow(
        key=experiment["key"],
        run=experiment["run"],
        look=line["look"],
        at=datetime.fromisoformat(line["at"]),
        actor=line["actor"],
        verdict=Verdict(line["verdict"]),
        state_before=State(line["state_before"]),
        state_after=State(line["state_after"]),
        step_before=line["step_before"],
        step_after=line["step_after"],
        reasons=tuple(Reason(**reason) for reason in line["reasons"]),
        evidence=line["evidence"],
        spec_digest=experiment["spec_digest"],
        code_version=line["code_version"],
    )
