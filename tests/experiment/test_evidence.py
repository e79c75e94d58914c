"""Evidence: the numbers are those of the users, the e-values say what the limits say, and the latches only climb."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.evidence import (
    Evidence,
    LimitEvidence,
    MetricEvidence,
    latch_key,
    latches,
    tau2_of,
    weigh,
)
from experiment.gate import promote_threshold, rollback_threshold
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import ArmAggregate, ExperimentRow, Latch
from stats.mixture import confidence_sequence, optimal_x
from tests.experiment.factories import DOCUMENT, Totals, aggregate, look_at, running_row, visitors

CTR = {"name": "ctr", "role": "guardrail", "margin": 0.05,
       "planning": {"baseline": 0.1, "relative_sd": 1.2, "users_per_arm": 4000}}  # fmt: skip
DISMISSES = {"name": "dismisses", "role": "guardrail", "margin": 0.05,
             "planning": {"baseline": 2.0, "relative_sd": 0.5, "users_per_arm": 4000}}  # fmt: skip


def spec_with(*metrics: dict[str, Any], **changes: Any) -> ExperimentSpec:
    return parse_spec({**DOCUMENT, "metrics": list(metrics) or [CTR], **changes})


def pair(
    users: int = 5000, seed: int = 3, effect: float = 0.0, dismisses: tuple[float, float] = (2.0, 2.0)
) -> tuple[Totals, Totals]:
    """(treatment, control): effect is on the treatment's CTR."""
    rng = np.random.default_rng(seed)
    arms = visitors(users, rng, ctr=0.1 * (1 + effect)), visitors(users, rng)
    for arm, rate in zip(arms, dismisses, strict=True):
        arm["dismisses"] = rng.poisson(rate, users).astype(float)
    return arms


def evidence_of(row: ExperimentRow, treatment: Totals, control: Totals) -> Evidence:
    return weigh(look_at(row, [aggregate("fp8", treatment), aggregate("bf16", control)]))


def only(evidence: Evidence, name: str = "ctr") -> MetricEvidence:
    return next(metric for metric in evidence.metrics if metric.metric == name)


def none_of(totals: Totals) -> Totals:
    return {name: values[:0] for name, values in totals.items()}


@pytest.mark.parametrize(
    ("metric", "share"),
    [(CTR, 0.95), (DISMISSES, 1.05), (CTR | {"role": "quality", "margin": None}, 1.0)],
    ids=["more is better", "less is better", "no margin"],
)
def test_the_mixture_variance_follows_from_the_plan_alone(metric: dict[str, Any], share: float) -> None:
    spec = spec_with(metric, CTR if metric["name"] != "ctr" else DISMISSES)
    plan = metric["planning"]
    one_arm = (plan["relative_sd"] * plan["baseline"]) ** 2 / plan["users_per_arm"]
    expected = optimal_x(0.05, sided=1) * one_arm * (1 + share**2)
    assert tau2_of(spec)[metric["name"]] == pytest.approx(expected, rel=1e-12)


def test_the_mixture_variance_of_the_row_is_used_and_not_refitted(spec: ExperimentSpec) -> None:
    arms = pair()
    row = running_row(spec)
    other = replace(row, tau2={name: 10 * value for name, value in row.tau2.items()})
    assert only(evidence_of(row, *arms)).log_e_promote != only(evidence_of(other, *arms)).log_e_promote


def test_readings_and_effect_are_those_of_the_users(spec: ExperimentSpec) -> None:
    treatment, control = pair(effect=0.2)
    evidence = evidence_of(running_row(spec), treatment, control)
    found = only(evidence)
    ctr = [float(arm["clicks"].sum() / arm["impressions"].sum()) for arm in (treatment, control)]
    assert [found.treatment.value, found.control.value] == pytest.approx(ctr)
    assert found.effect == pytest.approx(ctr[0] / ctr[1] - 1)
    assert found.treatment.users == found.control.users == 5000
    watched = only(evidence, "watch_time")
    assert watched.treatment.value == pytest.approx(float(treatment["watch_s"].mean()))
    for metric in (found, watched):
        for reading in (metric.treatment, metric.control):
            assert reading.value is not None
            assert reading.low is not None
            assert reading.high is not None
            assert reading.low < reading.value < reading.high
        assert metric.effect is not None
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.effect < metric.high


def test_an_arms_own_limits_have_half_of_the_contrasts_mixture_variance(spec: ExperimentSpec) -> None:
    row, (treatment, control) = running_row(spec), pair()
    reading = only(evidence_of(row, treatment, control), "watch_time").treatment
    watched = treatment["watch_s"]
    variance = float(watched.var(ddof=1)) / watched.size
    limits = confidence_sequence(float(watched.mean()), variance, row.tau2["watch_time"] / 2, 0.05)
    assert (reading.low, reading.high) == pytest.approx(limits)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    effect=st.floats(-0.4, 0.4),
    dismisses=st.floats(1.2, 3.0),
    users=st.sampled_from([50, 700, 9000]),
    margin=st.sampled_from([0.02, 0.1, 0.3]),
    harm_margin=st.sampled_from([None, 0.0, 0.05]),
)
def test_an_e_value_proves_exactly_what_the_bound_says(
    seed: int, effect: float, dismisses: float, users: int, margin: float, harm_margin: float | None
) -> None:
    """Promotion: the bound is inside the margin. Rollback: the other bound is beyond the harm margin."""
    margins = {"margin": margin} | ({} if harm_margin is None else {"harm_margin": harm_margin})
    spec = spec_with(CTR | margins, DISMISSES | margins)
    evidence = evidence_of(running_row(spec), *pair(users, seed, effect, (dismisses, 2.0)))
    beyond = margin if harm_margin is None else harm_margin
    for metric, sign in ((only(evidence), 1), (only(evidence, "dismisses"), -1)):
        inside = metric.bound is not None and sign * metric.bound > -margin
        assert (metric.log_e_promote > promote_threshold(spec)) == inside
        harmful = metric.harm_bound is not None and sign * metric.harm_bound < -beyond
        assert (metric.log_e_rollback > rollback_threshold(spec)) == harmful
        assert not (inside and harmful and beyond >= margin)


@pytest.mark.parametrize(
    ("effect", "dismisses", "loudest"),
    [(0.5, (1.5, 2.0), "log_e_superior"), (-0.5, (3.0, 2.0), "log_e_rollback")],
    ids=["better", "worse"],
)
def test_good_is_good_whichever_way_a_metric_points(
    effect: float, dismisses: tuple[float, float], loudest: str
) -> None:
    spec = spec_with(CTR, DISMISSES)
    evidence = evidence_of(running_row(spec), *pair(effect=effect, dismisses=dismisses))
    for metric in evidence.metrics:
        assert getattr(metric, loudest) > 10
        silent = {"log_e_superior": "log_e_rollback", "log_e_rollback": "log_e_promote"}[loudest]
        assert getattr(metric, silent) < 0


def test_a_metric_without_a_margin_can_prove_superiority_alone() -> None:
    quality = CTR | {"role": "success", "margin": None}
    found = only(evidence_of(running_row(spec_with(quality)), *pair(effect=0.5)))
    assert (found.log_e_promote, found.log_e_rollback) == (0.0, 0.0)
    assert found.log_e_superior > 10


def test_without_users_everything_is_unknown_and_nothing_is_proved(spec: ExperimentSpec) -> None:
    nobody = none_of(pair()[0])
    evidence = evidence_of(running_row(spec), nobody, nobody)
    for metric in evidence.metrics:
        assert (metric.effect, metric.low, metric.high, metric.bound, metric.harm_bound) == (None,) * 5
        assert (metric.log_e_promote, metric.log_e_rollback, metric.log_e_superior) == (0.0, 0.0, 0.0)
        assert metric.treatment.value is None
        assert not metric.ready
    assert evidence.srm_log_e == pytest.approx(0.0, abs=1e-9)
    assert [limit.value for limit in evidence.limits] == [None] * 4


def test_a_control_without_a_click_has_no_relative_effect_and_is_no_error(spec: ExperimentSpec) -> None:
    treatment, control = pair()
    nothing = {**control, "clicks": np.zeros_like(control["clicks"])}
    found = only(evidence_of(running_row(spec), treatment, nothing))
    assert (found.effect, found.low, found.high, found.bound, found.harm_bound) == (None,) * 5
    assert found.control.value == 0


def test_the_latches_move_only_past_the_burn_in(spec: ExperimentSpec) -> None:
    minimum = spec.minimums.users_per_arm
    kept = Latch(1.0, 2.0, 3.0)
    row = running_row(spec, latches={latch_key("ctr", "fp8"): kept})
    few, enough = (
        [{name: v[:n] for name, v in arm.items()} for arm in pair(effect=0.9)] for n in (minimum - 1, minimum)
    )
    early = only(evidence_of(row, *few))
    assert not early.ready
    assert early.latch == kept
    assert early.log_e_superior > 3
    later = only(evidence_of(row, *enough))
    assert later.ready
    assert later.latch == Latch(max(1.0, later.log_e_promote), 2.0, later.log_e_superior)


@pytest.mark.parametrize(("silent", "ready"), [("fp8", True), ("bf16", False)])
def test_the_burn_in_asks_control_for_clicks_and_not_the_treatment(
    spec: ExperimentSpec, silent: str, ready: bool
) -> None:
    treatment, control = pair()
    arms = {"fp8": treatment, "bf16": control}
    arms[silent] = {**arms[silent], "clicks": np.zeros(5000)}
    assert only(evidence_of(running_row(spec), arms["fp8"], arms["bf16"])).ready is ready


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(-0.5, 0.5)), min_size=1, max_size=6))
def test_latches_only_climb_and_are_the_largest_that_was_seen(looks: list[tuple[int, float]]) -> None:
    spec = spec_with(CTR)
    row, highest = running_row(spec), Latch()
    for seed, effect in looks:
        evidence = evidence_of(row, *pair(600, seed, effect))
        found = only(evidence)
        highest = Latch(
            max(highest.promote, found.log_e_promote),
            max(highest.rollback, found.log_e_rollback),
            max(highest.superior, found.log_e_superior),
        )
        row = replace(row, latches=latches(evidence))
        assert row.latches == {"ctr/fp8": highest}


@pytest.mark.parametrize(
    ("totals", "value", "broken"),
    [
        ({"requests": 49, "failed": 49}, None, False),
        ({"requests": 50, "failed": 0}, 0.0, False),
        ({"requests": 100, "failed": 1, "fallbacks": 1}, 0.02, False),
        ({"requests": 100, "failed": 1, "fallbacks": 2}, 0.03, True),
    ],
)
def test_a_hard_limit_is_a_share_of_enough_requests(
    spec: ExperimentSpec, totals: dict[str, float], value: float | None, broken: bool
) -> None:
    treatment, control = pair(300)
    arms = [aggregate("fp8", treatment, **totals), aggregate("bf16", control, requests=1000, failed=0)]
    limits = weigh(look_at(running_row(spec), arms)).limits
    found = next(limit for limit in limits if (limit.name, limit.arm) == ("error_share", "fp8"))
    assert found == LimitEvidence("error_share", "fp8", value, int(totals["requests"]), 0.02)
    assert found.broken is broken
    assert {(limit.name, limit.arm) for limit in limits} == {
        (name, arm) for name in ("error_share", "slow_share") for arm in ("fp8", "bf16")
    }


def exposed(spec: ExperimentSpec, step: int, phases: dict[str, Sequence[int]]) -> Evidence:
    totals = pair(300)[0]
    arms: list[ArmAggregate] = [aggregate(arm, totals, counts) for arm, counts in phases.items()]
    return weigh(look_at(running_row(spec, step=step), arms))


def test_exposures_are_counted_in_all_and_since_the_step_began(spec: ExperimentSpec) -> None:
    found = exposed(spec, 2, {"fp8": [1, 2, 4, 8, 16], "bf16": [32, 64, 128, 256, 512]})
    assert found.exposed == {"fp8": 31, "bf16": 992}
    assert found.exposed_in_step == {"fp8": 28, "bf16": 896}


def test_the_sample_ratio_pools_the_phases(spec: ExperimentSpec) -> None:
    """Arms are equal at every step, so a surplus here that a later step makes up for is none."""
    even = exposed(spec, 4, {"fp8": [900, 0, 0, 0, 100], "bf16": [100, 0, 0, 0, 900]})
    uneven = exposed(spec, 4, {"fp8": [900, 0, 0, 0, 900], "bf16": [600, 0, 0, 0, 600]})
    assert even.srm_log_e < 0
    assert uneven.srm_log_e > math.log(1000)


def test_each_treatment_is_held_against_control(document: dict[str, Any]) -> None:
    document["treatments"].append({"arm": "int4", "variant": "int4"})
    document["ramp"]["steps"][-1]["coverage"] = 0.3
    spec = parse_spec(document)
    worse, control = pair(effect=-0.5)
    same = pair(seed=99)[0]
    arms = [aggregate("fp8", same), aggregate("int4", worse), aggregate("bf16", control)]
    evidence = weigh(look_at(running_row(spec), arms))
    harm = {(metric.metric, metric.arm): metric.log_e_rollback for metric in evidence.metrics}
    assert len(harm) == 4
    assert harm["ctr", "int4"] > 10 > harm["ctr", "fp8"]
    assert set(latches(evidence)) == {"ctr/fp8", "ctr/int4", "watch_time/fp8", "watch_time/int4"}


@pytest.mark.parametrize("users", [0, 1, 2, 5000])
def test_stored_evidence_is_the_same_evidence(spec: ExperimentSpec, users: int) -> None:
    arms = [{name: values[:users] for name, values in arm.items()} for arm in pair(max(users, 2), effect=0.1)]
    evidence = replace(evidence_of(running_row(spec), *arms), orphans=3, late=4)
    stored = json.loads(json.dumps(evidence.to_dict() | {"row": {"state": "running"}}, allow_nan=False))
    assert Evidence.from_dict(stored) == evidence
