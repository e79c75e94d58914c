"""The specifications that come with the product: they load, say what they are for, and decide what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from experiment.controller import judge
from experiment.metrics import METRICS
from experiment.ramp import Action, act, new_experiment
from experiment.spec import ExperimentSpec, load_spec
from experiment.state import ArmAggregate, LookInput, Verdict
from stats.moments import Moments

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "experiments"
NAMES = ("demo", "demo-rollback", "fp8-canary")
START = datetime(2026, 3, 2, tzinfo=UTC)
IMPRESSIONS = 20.0


def text(name: str) -> str:
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def specs() -> Mapping[str, ExperimentSpec]:
    return {name: load_spec(text(name)) for name in NAMES}


def test_every_file_of_the_folder_is_known_here() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(NAMES)


def test_no_two_are_the_same_experiment(specs: Mapping[str, ExperimentSpec]) -> None:
    assert len({spec.key for spec in specs.values()}) == len(NAMES)
    assert len({spec.digest for spec in specs.values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_ramp_goes_from_a_hundredth_to_everybody(specs: Mapping[str, ExperimentSpec], name: str) -> None:
    assert [step.coverage for step in specs[name].ramp.steps] == [0.01, 0.05, 0.10, 0.25, 0.50]


@pytest.mark.parametrize("name", NAMES)
def test_there_is_time_for_the_ramp_and_a_window_after_it(specs: Mapping[str, ExperimentSpec], name: str) -> None:
    spec = specs[name]
    ramp_s = sum(step.min_duration_s for step in spec.ramp.steps)
    assert max(ramp_s, spec.minimums.duration_s) + spec.exposure_window_s < spec.max_duration_s / 2


def test_the_rollback_demo_is_the_demo_with_a_damaged_variant(specs: Mapping[str, ExperimentSpec]) -> None:
    demo, damaged = (specs[name].model_dump() for name in ("demo", "demo-rollback"))
    differing = {field for field in demo if demo[field] != damaged[field]}
    assert differing == {"key", "description", "treatments"}
    assert [arm["arm"] for arm in damaged["treatments"]] == ["fp8"]
    assert [arm["variant"] for arm in damaged["treatments"]] == ["fp8-faulty"]


@pytest.mark.parametrize("name", ["demo", "demo-rollback"])
def test_demo_values_carry_their_warning_before_the_first_field(name: str) -> None:
    head, _, _ = text(name).partition("\nkey:")
    assert "do NOT copy these values" in head.replace("Do NOT", "do NOT")


def test_the_canary_waits_for_windows_weekends_and_people(specs: Mapping[str, ExperimentSpec]) -> None:
    canary = specs["fp8-canary"]
    day = 86_400.0
    assert canary.exposure_window_s == day
    assert canary.ramp.steps[0].min_duration_s > canary.exposure_window_s
    assert canary.minimums.duration_s >= 7 * day
    guardrails = {metric.name: metric for metric in canary.metrics if metric.role == "guardrail"}
    assert guardrails["ctr"].margin == 0.02
    assert 0.03 <= (guardrails["watch_time"].margin or 0) <= 0.05
    assert guardrails["watch_time"].cap is not None
    assert {limit.name for limit in canary.limits} == {"error_share", "slow_share"}


def moments(spec: ExperimentSpec, metric: str, users: int, effect: float) -> Moments:
    """Per-user sums as planned, times 1 + effect; the noise scales along."""
    plan = next(one for one in spec.metrics if one.name == metric).planning
    per_user = IMPRESSIONS if METRICS[metric].kind == "ratio" else 1.0
    mean = plan.baseline * per_user * (1 + effect)
    square = mean**2 * (1 + plan.relative_sd**2)
    n = users
    return Moments.from_sums(n, n * mean, n * per_user, n * square, n * per_user**2, n * mean * per_user)


def verdict(spec: ExperimentSpec, users: int, effect: float, elapsed_s: float, step: int) -> Verdict:
    """What the gate says when every metric moved by `effect` and nothing else is wrong."""
    row = act(new_experiment(spec, START), Action.START, START)
    row = replace(row, step=step)
    arms = {}
    for arm in spec.arms:
        moved = 0.0 if arm is spec.control else effect
        values = {metric.name: moments(spec, metric.name, users, moved) for metric in spec.metrics}
        totals = {"requests": 2.0 * users, "impressions": IMPRESSIONS * users, "clicks": values["ctr"].sx}
        phases = [0] * step + [users]
        arms[arm.arm] = ArmAggregate(arm.arm, phases, users, values, totals)
    now = START + timedelta(seconds=elapsed_s)
    return judge(LookInput(row, arms, now, orphans=0, late=0), now)[1]


@pytest.mark.parametrize("name", NAMES)
def test_an_equal_variant_is_promoted_with_the_planned_users(specs: Mapping[str, ExperimentSpec], name: str) -> None:
    spec = specs[name]
    users = max(metric.planning.users_per_arm for metric in spec.metrics)
    assert verdict(spec, users, 0.0, spec.minimums.duration_s, step=4) is Verdict.PROMOTE
    assert verdict(spec, users // 10, 0.0, spec.minimums.duration_s, step=4) is Verdict.HOLD
    assert verdict(spec, users, 0.0, spec.minimums.duration_s / 2, step=4) is Verdict.HOLD


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_the_whole_margin_is_not_promoted(specs: Mapping[str, ExperimentSpec], name: str) -> None:
    spec = specs[name]
    users = max(metric.planning.users_per_arm for metric in spec.metrics)
    margin = min(metric.margin for metric in spec.metrics if metric.margin is not None)
    assert verdict(spec, users, -margin, spec.minimums.duration_s, step=4) is Verdict.HOLD


@pytest.mark.parametrize("name", NAMES)
def test_a_gross_loss_is_rolled_back_right_after_the_burn_in(specs: Mapping[str, ExperimentSpec], name: str) -> None:
    spec = specs[name]
    users = spec.minimums.users_per_arm
    assert verdict(spec, users, -0.7, 20.0, step=1) is Verdict.ROLLBACK
    assert verdict(spec, users - 1, -0.7, 20.0, step=1) is not Verdict.ROLLBACK


def test_slates_by_chance_leave_the_burn_in_of_the_demo(
    specs: Mapping[str, ExperimentSpec],
) -> None:
    """Random slates are clicked by these visitors at about 3 %: they must not stay in the burn-in for ever."""
    spec = specs["demo-rollback"]
    assert 0.03 * IMPRESSIONS * spec.minimums.users_per_arm > 2 * spec.minimums.clicks_per_arm
