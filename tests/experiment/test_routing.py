"""Who goes where: nobody ever changes arm, arms stay equal in size, everybody else gets the default."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.errors import InvalidUserError
from experiment.ramp import Action, act, new_experiment
from experiment.routing import RoutingTable, compile_table, from_dict, route, to_dict
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import ExperimentRow, State
from tests.experiment.factories import DOCUMENT, NOW, running_row

COVERAGES = (0.01, 0.05, 0.10, 0.25, 0.50)


def table_at(spec: ExperimentSpec, step: int, **changes: Any) -> RoutingTable:
    return compile_table([running_row(spec, step=step, **changes)], {}, "bf16", version=step + 1)


@given(st.lists(st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())), min_size=1, max_size=60))
def test_no_user_ever_changes_arm_while_the_ramp_widens(users: list[str]) -> None:
    spec = parse_spec(DOCUMENT)
    for user in users:
        arms = [route(table_at(spec, step), user).arm for step in range(len(COVERAGES))]
        first = next((place for place, arm in enumerate(arms) if arm is not None), len(arms))
        assert len(set(arms[first:])) <= 1


def test_of_ten_thousand_visitors_nobody_changes_arm_at_any_coverage(spec: ExperimentSpec) -> None:
    tables = [table_at(spec, step) for step in range(len(COVERAGES))]
    sizes: list[Counter[str | None]] = [Counter() for _ in tables]
    for number in range(10_000):
        arms = [route(table, f"visitor-{number}").arm for table in tables]
        known = {arm for arm in arms if arm is not None}
        assert len(known) <= 1
        assert arms == sorted(arms, key=lambda arm: arm is not None), "nobody leaves the experiment while it widens"
        for size, arm in zip(sizes, arms, strict=True):
            size[arm] += 1
    for coverage, size in zip(COVERAGES, sizes, strict=True):
        spread = 4 * (10_000 * coverage * (1 - coverage)) ** 0.5
        assert abs(size["fp8"] - 10_000 * coverage) < spread
        assert abs(size["bf16"] - 10_000 * coverage) < spread


def test_users_outside_get_the_default_variant_and_no_arm(spec: ExperimentSpec) -> None:
    table = table_at(spec, 0)
    outside = [route(table, f"u{number}") for number in range(2_000)]
    assert {found.variant for found in outside if found.arm is None} == {"bf16"}
    assert {found.reason for found in outside} == {"SPLIT", "DEFAULT"}


def test_three_arms_share_everybody_at_full_width(document: dict[str, Any]) -> None:
    document["treatments"].append({"arm": "fp8-b", "variant": "fp8-b"})
    document["ramp"]["steps"] = [{"coverage": 0.1}, {"coverage": 1 / 3}]
    spec = parse_spec(document)
    found = Counter(route(table_at(spec, 1), f"u{number}").arm for number in range(9_000))
    assert {arm: round(count / 9_000, 1) for arm, count in found.items() if arm} == {
        "fp8": 0.3,
        "fp8-b": 0.3,
        "bf16": 0.3,
    }
    for number in range(3_000):
        early, late = (route(table_at(spec, step), f"u{number}").arm for step in (0, 1))
        assert early in {None, late}


def test_disjoint_layers_never_share_a_user(document: dict[str, Any]) -> None:
    rows = []
    for key, start, end in (("one", 0.0, 0.5), ("two", 0.5, 1.0)):
        spec = parse_spec({**document, "key": key, "layer": {"name": "ranking", "start": start, "end": end}})
        rows.append(running_row(spec, step=4))
    table = compile_table(rows, {}, "bf16", 1)
    met = Counter(route(table, f"u{number}").experiment for number in range(4_000))
    assert set(met) == {"one", "two"}
    alone = [compile_table([row], {}, "bf16", 1) for row in rows]
    for number in range(2_000):
        assert sum(route(one, f"u{number}").experiment is not None for one in alone) <= 1


def test_an_override_forces_its_arm_and_says_so(spec: ExperimentSpec) -> None:
    table = compile_table([running_row(spec, step=0)], {spec.key: {"tester": "fp8"}}, "bf16", 1)
    found = route(table, "tester")
    assert (found.arm, found.variant, found.forced, found.reason) == ("fp8", "fp8", True, "TARGETING_MATCH")


def test_a_restart_splits_anew(spec: ExperimentSpec) -> None:
    first = running_row(spec, step=4)
    stopped = act(first, Action.STOP, NOW)
    second = act(act(stopped, Action.RESTART, NOW), Action.START, NOW)
    second = replace(second, step=4)
    tables = [compile_table([row], {}, "bf16", 1) for row in (first, second)]
    same = sum(route(tables[0], f"u{n}").arm == route(tables[1], f"u{n}").arm for n in range(4_000))
    assert 0.45 < same / 4_000 < 0.55


@pytest.mark.parametrize(
    ("state", "variants"),
    [
        (State.READY, {"bf16"}),
        (State.RUNNING, {"bf16", "fp8"}),
        (State.PAUSED, {"bf16", "fp8"}),
        (State.ROLLED_BACK, {"bf16"}),
        (State.STOPPED, {"bf16"}),
    ],
)
def test_only_running_and_paused_experiments_route(spec: ExperimentSpec, state: State, variants: set[str]) -> None:
    table = table_at(spec, 4, state=state)
    assert {route(table, f"u{number}").variant for number in range(200)} == variants


def test_a_promoted_variant_becomes_everybodys_default(spec: ExperimentSpec) -> None:
    table = table_at(spec, 4, state=State.PROMOTED, promoted_variant="fp8", ended_at=NOW)
    assert {route(table, f"u{number}").variant for number in range(200)} == {"fp8"}


def test_a_table_survives_the_wire(spec: ExperimentSpec) -> None:
    rows: list[ExperimentRow] = [running_row(spec, step=2), replace(new_experiment(spec, NOW), key="other")]
    table = compile_table(rows, {spec.key: {"tester": "fp8"}}, "bf16", 7)
    assert from_dict(to_dict(table)) == table


@pytest.mark.parametrize("user", ["", "  ", None, 3])
def test_a_missing_user_is_refused_not_routed(spec: ExperimentSpec, user: object) -> None:
    with pytest.raises(InvalidUserError):
        route(table_at(spec, 0), user)  # type: ignore[arg-type]


def test_a_table_says_which_experiments_compare_slates(spec: ExperimentSpec) -> None:
    plain, shadowed = table_at(spec, 2), table_at(spec.model_copy(update={"shadow": True}), 2)
    assert [entry.shadow for entry in (*plain.entries, *shadowed.entries)] == [False, True]
    assert from_dict(to_dict(shadowed)) == shadowed
    older = to_dict(plain)
    for entry in older["entries"]:
        del entry["shadow"]
    assert from_dict(older) == plain
