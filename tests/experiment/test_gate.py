"""The gate on looks that were made up: every verdict, its reasons, and planted errors that it must not swallow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from experiment.controller import judge
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import ArmAggregate, ExperimentRow, Reason, State, Verdict
from tests.experiment.factories import NOW, Totals, aggregate, look_at, running_row, visitors

USERS = 8_000


def verdict(
    row: ExperimentRow, treatment: ArmAggregate, control: ArmAggregate, now: datetime = NOW
) -> tuple[Verdict, Sequence[Reason]]:
    _, found, reasons = judge(look_at(row, [treatment, control]), now)
    assert reasons, "every verdict has a reason"
    return found, reasons


def codes(reasons: Sequence[Reason]) -> set[str]:
    return {reason.code for reason in reasons}


@pytest.fixture
def alike() -> tuple[Totals, Totals]:
    rng = np.random.default_rng(11)
    return visitors(USERS, rng), visitors(USERS, rng)


@pytest.fixture
def widest(spec: ExperimentSpec) -> ExperimentRow:
    return running_row(spec, step=len(spec.ramp.steps) - 1)


def test_without_users_there_is_no_data_and_that_is_not_bad_data(spec: ExperimentSpec, alike: Any) -> None:
    nobody = {name: values[:0] for name, values in alike[0].items()}
    found, reasons = verdict(running_row(spec), aggregate("fp8", nobody), aggregate("bf16", nobody))
    assert found is Verdict.NO_DATA
    assert codes(reasons) == {"no_data"}


def test_an_early_step_advances_without_proof_when_nothing_looks_harmful(spec: ExperimentSpec, alike: Any) -> None:
    few = [{name: values[:40] for name, values in totals.items()} for totals in alike]
    found, reasons = verdict(running_row(spec), aggregate("fp8", few[0]), aggregate("bf16", few[1]))
    assert found is Verdict.ADVANCE
    assert codes(reasons) == {"step_done"}


def test_a_step_waits_for_its_users_and_its_time(spec: ExperimentSpec, alike: Any) -> None:
    few = [{name: values[:5] for name, values in totals.items()} for totals in alike]
    row = running_row(spec, step_started_at=NOW - timedelta(seconds=5))
    found, reasons = verdict(row, aggregate("fp8", few[0]), aggregate("bf16", few[1]))
    assert found is Verdict.HOLD
    assert codes(reasons) == {"step_users", "step_duration"}


def test_a_promotion_needs_proof_of_every_guardrail(widest: ExperimentRow, alike: Any) -> None:
    found, reasons = verdict(widest, aggregate("fp8", alike[0]), aggregate("bf16", alike[1]))
    assert found is Verdict.PROMOTE
    assert {reason.metric for reason in reasons} == {"ctr", "watch_time"}
    for reason in reasons:
        assert reason.bound is not None
        assert reason.margin is not None
        assert reason.bound > reason.margin, "the sentence and the proof agree"


def test_one_unproved_guardrail_holds_and_is_named(widest: ExperimentRow, alike: Any) -> None:
    noisy = dict(alike[0]) | {
        "watch_s": alike[0]["watch_s"] * np.random.default_rng(1).choice([0.0, 9.2], USERS, p=[0.9, 0.1])
    }
    found, reasons = verdict(widest, aggregate("fp8", noisy), aggregate("bf16", alike[1]))
    assert found is Verdict.HOLD
    assert [(reason.code, reason.metric) for reason in reasons] == [("not_proved", "watch_time")]


def test_no_promotion_before_the_minimum_duration(widest: ExperimentRow, alike: Any) -> None:
    young = replace(widest, started_at=NOW - timedelta(minutes=30))
    found, reasons = verdict(young, aggregate("fp8", alike[0]), aggregate("bf16", alike[1]))
    assert found is Verdict.HOLD
    assert "minimum_duration" in codes(reasons)


@pytest.mark.parametrize("metric", ["ctr", "watch_time"])
def test_planted_harm_rolls_back_and_names_metric_estimate_bound_and_margin(widest: ExperimentRow, metric: str) -> None:
    rng = np.random.default_rng(3)
    worse = visitors(USERS, rng, **({"ctr": 0.07} if metric == "ctr" else {"watch_s": 40.0}))
    found, reasons = verdict(widest, aggregate("fp8", worse), aggregate("bf16", visitors(USERS, rng)))
    assert found is Verdict.ROLLBACK
    reason = reasons[0]
    assert (reason.code, reason.metric, reason.arm) == ("harm", metric, "fp8")
    assert reason.estimate is not None
    assert reason.bound is not None
    assert reason.margin is not None
    assert reason.estimate < reason.bound < reason.margin, "even the harmless end of the limits is beyond the margin"
    assert f"margin {100 * reason.margin:+.1f} %" in reason.text


def test_arms_that_were_swapped_never_pass_for_the_truth(widest: ExperimentRow) -> None:
    """Polarity: the better arm as treatment is promoted, the worse one is rolled back, never the other way round."""
    rng = np.random.default_rng(4)
    better, worse = visitors(USERS, rng, ctr=0.13), visitors(USERS, rng, ctr=0.10)
    assert verdict(widest, aggregate("fp8", better), aggregate("bf16", worse))[0] is Verdict.PROMOTE
    assert verdict(widest, aggregate("fp8", worse), aggregate("bf16", better))[0] is Verdict.ROLLBACK


def test_less_is_better_where_the_metric_says_so(document: dict[str, Any]) -> None:
    document["metrics"] = [
        {
            "name": "dismisses",
            "role": "guardrail",
            "margin": 0.1,
            "planning": {"baseline": 1.0, "relative_sd": 1.0, "users_per_arm": 4000},
        }
    ]
    row = running_row(parse_spec(document), step=4)
    rng = np.random.default_rng(5)
    arms = [visitors(USERS, rng) for _ in range(2)]
    arms[0]["dismisses"], arms[1]["dismisses"] = rng.poisson(1.4, USERS) * 1.0, rng.poisson(1.0, USERS) * 1.0
    assert verdict(row, aggregate("fp8", arms[0]), aggregate("bf16", arms[1]))[0] is Verdict.ROLLBACK
    assert verdict(row, aggregate("fp8", arms[1]), aggregate("bf16", arms[0]))[0] is Verdict.PROMOTE


def test_a_variant_that_nobody_clicks_is_rolled_back(widest: ExperimentRow, alike: Any) -> None:
    ignored = dict(alike[0]) | {"clicks": np.zeros(USERS)}
    found, reasons = verdict(widest, aggregate("fp8", ignored), aggregate("bf16", alike[1]))
    assert found is Verdict.ROLLBACK
    assert reasons[0].metric == "ctr"


def test_a_lost_split_holds_and_says_so_even_with_proof(widest: ExperimentRow, alike: Any) -> None:
    found, reasons = verdict(
        widest, aggregate("fp8", alike[0], [0, 0, 0, 0, 5_000]), aggregate("bf16", alike[1], [0, 0, 0, 0, 6_000])
    )
    assert found is Verdict.HOLD
    assert codes(reasons) == {"srm_invalid"}


@pytest.mark.parametrize(
    ("column", "limit"), [("failed", "error_share"), ("fallbacks", "error_share"), ("slow", "slow_share")]
)
def test_a_broken_hard_limit_rolls_back_at_once(spec: ExperimentSpec, alike: Any, column: str, limit: str) -> None:
    treatment = aggregate("fp8", alike[0], **{column: 0.2 * alike[0]["requests"].sum()})
    found, reasons = verdict(running_row(spec), treatment, aggregate("bf16", alike[1]))
    assert found is Verdict.ROLLBACK
    assert [(reason.code, reason.metric) for reason in reasons] == [("limit_broken", limit)]


def test_where_control_fails_too_the_gate_halts_instead_of_rolling_back(spec: ExperimentSpec, alike: Any) -> None:
    failing = [
        aggregate(arm, totals, failed=0.3 * totals["requests"].sum())
        for arm, totals in zip(("fp8", "bf16"), alike, strict=True)
    ]
    found, reasons = verdict(running_row(spec), *failing)
    assert found is Verdict.HOLD
    assert codes(reasons) == {"control_unhealthy"}


def test_a_signal_pauses_and_resumes_on_recovery(document: dict[str, Any]) -> None:
    document["metrics"][1]["role"] = "signal"
    row = running_row(parse_spec(document), step=4)
    rng = np.random.default_rng(6)
    control, worse = visitors(USERS, rng), visitors(USERS, rng, watch_s=40.0)
    found, reasons = verdict(row, aggregate("fp8", worse), aggregate("bf16", control))
    assert found is Verdict.PAUSE
    paused = replace(row, state=State.PAUSED, pause_reason=reasons[0].code)
    assert verdict(paused, aggregate("fp8", worse), aggregate("bf16", control))[0] is Verdict.PAUSE
    fine = visitors(USERS, rng)
    assert verdict(paused, aggregate("fp8", fine), aggregate("bf16", control))[0] is Verdict.ADVANCE


def test_a_run_paused_by_hand_is_still_judged_but_never_advanced(spec: ExperimentSpec, alike: Any) -> None:
    row = running_row(spec, state=State.PAUSED, pause_reason="pause", step=2)
    assert verdict(row, aggregate("fp8", alike[0]), aggregate("bf16", alike[1]))[0] is Verdict.HOLD
    worse = visitors(USERS, np.random.default_rng(7), ctr=0.05)
    assert verdict(row, aggregate("fp8", worse), aggregate("bf16", alike[1]))[0] is Verdict.ROLLBACK


def test_time_runs_out_inconclusive_and_control_stays(widest: ExperimentRow) -> None:
    rng = np.random.default_rng(8)
    few = [visitors(300, rng), visitors(300, rng)]
    old = replace(widest, started_at=NOW - timedelta(seconds=100_001))
    found, reasons = verdict(old, aggregate("fp8", few[0]), aggregate("bf16", few[1]))
    assert found is Verdict.ROLLBACK
    assert codes(reasons) == {"inconclusive"}


def test_a_success_metric_must_be_better_not_just_harmless(document: dict[str, Any], alike: Any) -> None:
    document["metrics"][0]["role"] = "success"
    row = running_row(parse_spec(document), step=4)
    found, reasons = verdict(row, aggregate("fp8", alike[0]), aggregate("bf16", alike[1]))
    assert found is Verdict.HOLD
    assert ("not_proved", "ctr") in {(reason.code, reason.metric) for reason in reasons}
    better = visitors(USERS, np.random.default_rng(9), ctr=0.13)
    assert verdict(row, aggregate("fp8", better), aggregate("bf16", alike[1]))[0] is Verdict.PROMOTE


def test_proof_once_found_stays_found(widest: ExperimentRow, alike: Any) -> None:
    """Latched: a later, noisier look cannot take back what an e-process has crossed."""
    evidence, _, _ = judge(look_at(widest, [aggregate("fp8", alike[0]), aggregate("bf16", alike[1])]), NOW)
    from experiment.evidence import latches

    later = replace(widest, latches=latches(evidence))
    few = [{name: values[:250] for name, values in totals.items()} for totals in alike]
    again, found, _ = judge(look_at(later, [aggregate("fp8", few[0]), aggregate("bf16", few[1])]), NOW)
    for before, after in zip(evidence.metrics, again.metrics, strict=True):
        assert after.latch.promote >= before.latch.promote
    assert found is Verdict.PROMOTE


def test_the_burn_in_keeps_early_chance_out(widest: ExperimentRow) -> None:
    rng = np.random.default_rng(10)
    few = [visitors(150, rng, ctr=0.02), visitors(150, rng)]
    found, _ = verdict(widest, aggregate("fp8", few[0]), aggregate("bf16", few[1]))
    assert found is Verdict.HOLD
