"""The self-test runs production's gate on known truths: what it says of errors and of harm holds in fresh runs."""

from __future__ import annotations

from typing import Any

import pytest

from experiment.errors import SpecError
from experiment.selftest import Outcome, scenarios, selftest
from experiment.spec import ExperimentSpec, parse_spec

PER_DAY = 30_000.0


@pytest.fixture
def small(document: dict[str, Any]) -> ExperimentSpec:
    """Decided within days, in a fraction of a second each."""
    document["metrics"][0]["margin"] = 0.15
    document["metrics"][1]["margin"] = 0.2
    document["exposure_window_s"] = 3600
    document["max_duration_s"] = 172_800
    document["look_interval_s"] = 3600
    return parse_spec(document)


def by_name(found: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.scenario.name: outcome for outcome in found}


def test_equal_arms_are_promoted_edges_are_not_and_harm_is_found(small: ExperimentSpec) -> None:
    said: list[tuple[str, int, int]] = []
    found = by_name(list(selftest(small, PER_DAY, runs=12, seed=3, progress=lambda *at: said.append(at))))
    assert list(found) == [scenario.name for scenario in scenarios(small)]
    assert said[-1][1:] == (12, 12)
    assert len(said) == 12 * len(found)
    equal = found["no effect"]
    assert equal.promoted.hits >= 9
    assert equal.rolled_back.hits <= 2
    assert 0 < equal.days < 2
    for name in ("ctr worse by its margin", "watch_time worse by its margin"):
        assert found[name].promoted.hits <= 3, "at most one in twenty, whatever the number of looks"
    for name in ("ctr worse by 30 %", "watch_time worse by 40 %"):
        assert found[name].rolled_back.hits >= 9
        assert found[name].promoted.hits == 0
    for outcome in found.values():
        assert outcome.promoted.hits + outcome.rolled_back.hits + outcome.undecided.hits == 12


def test_a_seed_repeats_itself(small: ExperimentSpec) -> None:
    first, second = (list(selftest(small, PER_DAY, runs=2, seed=8)) for _ in range(2))
    assert repr(first) == repr(second)


def test_too_little_traffic_decides_nothing(small: ExperimentSpec) -> None:
    found = by_name(list(selftest(small, 50.0, runs=2)))
    assert found["no effect"].undecided.hits == 2


def test_less_is_better_where_the_metric_says_so(document: dict[str, Any]) -> None:
    planning = {"baseline": 1.0, "relative_sd": 1.0, "users_per_arm": 4000}
    document["metrics"] = [{"name": "dismisses", "role": "guardrail", "margin": 0.1, "planning": planning}]
    assert [scenario.effects for scenario in scenarios(parse_spec(document), loss=0.3)] == [
        {},
        {"dismisses": 0.1},
        {"dismisses": 0.3},
    ]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [("users_per_day", (0.0, 5)), ("users_per_day", (float("nan"), 5)), ("runs", (1e3, 0)), ("loss", (1e3, 5, 0, 1.5))],
)
def test_bad_input_names_the_field(small: ExperimentSpec, field: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(SpecError) as refused:
        next(selftest(small, *arguments))
    assert refused.value.field == field
