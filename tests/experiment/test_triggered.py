"""Triggered evidence: a planted effect is found sooner, its split is watched, and the gate never hears of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from experiment.evidence import Evidence, weigh
from experiment.explain import about_triggered
from experiment.gate import decide
from experiment.report import build_report
from experiment.spec import ExperimentSpec, parse_spec
from experiment.state import ArmAggregate, LookInput
from experiment.triggered import TriggeredEvidence, TriggeredMetric
from tests.experiment.factories import DOCUMENT, NOW, Totals, aggregate, look_at, running_row, visitors
from tests.experiment.test_report import decided

SHARE = 0.1


@pytest.fixture
def shadowed() -> ExperimentSpec:
    return parse_spec(DOCUMENT | {"shadow": True})


def split_arm(arm: str, hit: Totals, rest: Totals) -> ArmAggregate:
    everybody = {name: np.concatenate([hit[name], rest[name]]) for name in hit}
    return replace(aggregate(arm, everybody), triggered=aggregate(arm, hit).moments, rest=aggregate(arm, rest).moments)


def planted(
    spec: ExperimentSpec, effect: float, users: int = 20_000, rest: float = 0.0, hit: tuple[float, float] | None = None
) -> LookInput:
    """A tenth of the users sees other slates, and the treatment's CTR is off by `effect` for them alone.

    rest: the effect on all others; hit: the triggered share of each arm, where it is not the same.
    """
    rng, arms = np.random.default_rng(17), []
    shares = hit or (SHARE, SHARE)
    for arm, share, on_hit, on_rest in (("fp8", shares[0], effect, rest), ("bf16", shares[1], 0.0, 0.0)):
        n = int(users * share)
        arms.append(split_arm(arm, visitors(n, rng, 0.1 * (1 + on_hit)), visitors(users - n, rng, 0.1 * (1 + on_rest))))
    return look_at(running_row(spec), arms)


def triggered_of(evidence: Evidence) -> tuple[TriggeredEvidence, TriggeredMetric]:
    assert evidence.triggered is not None
    return evidence.triggered, next(one for one in evidence.triggered.metrics if one.metric == "ctr")


@pytest.mark.parametrize("effect", [-0.3, 0.3])
def test_a_planted_effect_is_found_where_it_is_and_with_narrower_limits(
    shadowed: ExperimentSpec, effect: float
) -> None:
    evidence = weigh(planted(shadowed, effect))
    found, ctr = triggered_of(evidence)
    plain = next(metric for metric in evidence.metrics if metric.metric == "ctr")
    assert found.share == pytest.approx(SHARE)
    assert ctr.triggered.value == pytest.approx(effect, abs=0.06)
    assert ctr.diluted.value == pytest.approx(SHARE * effect, abs=0.01)
    for limits, truth in ((ctr.triggered, effect), (ctr.diluted, SHARE * effect), (ctr.rest, 0.0)):
        assert limits.low is not None
        assert limits.high is not None
        assert limits.low < truth < limits.high
    assert ctr.diluted.low is not None
    assert ctr.diluted.high is not None
    assert plain.low is not None
    assert plain.high is not None
    assert ctr.diluted.high - ctr.diluted.low < 0.5 * (plain.high - plain.low)
    assert ctr.diluted.low * ctr.diluted.high > 0, "seen with the trigger"
    assert plain.low < 0 < plain.high, "not seen without"
    assert not ctr.rest_differs


def test_an_effect_on_those_who_should_have_none_is_told(shadowed: ExperimentSpec) -> None:
    found, ctr = triggered_of(weigh(planted(shadowed, -0.3, rest=-0.3)))
    assert ctr.rest_differs
    assert "the others differ, too" in about_triggered(found)[1]


def test_the_split_of_the_triggered_is_watched(shadowed: ExperimentSpec) -> None:
    even, uneven = (triggered_of(weigh(planted(shadowed, 0.0, hit=hit)))[0] for hit in (None, (0.05, 0.15)))
    assert even.srm_log_e < 0
    assert uneven.srm_log_e > math.log(1000)
    assert uneven.users == {"fp8": 1000, "bf16": 3000}


def test_the_gate_does_not_read_it(shadowed: ExperimentSpec) -> None:
    look = planted(shadowed, -0.5, hit=(0.05, 0.15))
    evidence = weigh(look)
    assert evidence.triggered is not None
    without = replace(evidence, triggered=None)
    assert decide(shadowed, look.row, evidence, NOW) == decide(shadowed, look.row, without, NOW)


@pytest.mark.parametrize(("hit", "rest"), [(0, 0), (0, 50), (1, 50), (50, 0), (50, 1), (2, 2)])
def test_few_users_make_no_error_and_no_made_up_number(shadowed: ExperimentSpec, hit: int, rest: int) -> None:
    rng = np.random.default_rng(1)
    arms = [split_arm(arm, visitors(hit, rng), visitors(rest, rng)) for arm in ("fp8", "bf16")]
    evidence = weigh(look_at(running_row(shadowed), arms))
    found, ctr = triggered_of(evidence)
    assert found.share == (hit / (hit + rest) if hit + rest else None)
    assert (ctr.triggered.value is None) == (hit < 2)
    assert (ctr.diluted.value is None) == (hit < 2)
    json.dumps(asdict(found), allow_nan=False)
    assert about_triggered(found)


def test_when_everybody_is_triggered_diluted_is_undiluted(shadowed: ExperimentSpec) -> None:
    rng = np.random.default_rng(2)
    nobody = {name: values[:0] for name, values in visitors(1, rng).items()}
    arms = [split_arm(arm, visitors(3000, rng), nobody) for arm in ("fp8", "bf16")]
    _, ctr = triggered_of(weigh(look_at(running_row(shadowed), arms)))
    assert asdict(ctr.diluted) == pytest.approx(asdict(ctr.triggered))


def test_stored_evidence_loads_with_it_and_without_it(shadowed: ExperimentSpec, spec: ExperimentSpec) -> None:
    evidence = weigh(planted(shadowed, 0.1))
    stored: dict[str, Any] = json.loads(json.dumps(evidence.to_dict(), allow_nan=False))
    assert Evidence.from_dict(stored) == evidence
    del stored["triggered"]
    assert Evidence.from_dict(stored) == replace(evidence, triggered=None)
    assert weigh(planted(spec, 0.1)).triggered is None, "nothing without `shadow`"


def test_a_report_tells_it_in_words_and_numbers(shadowed: ExperimentSpec) -> None:
    look = planted(shadowed, -0.3)
    report = build_report(look.row, [decided(look.row, 1, weigh(look))])
    shown = report["triggered"]
    assert shown["text"][0] == "10 % of 40,000 users would have seen another slate at their first request"
    assert shown["text"][1].startswith("ctr of fp8: among them -")
    assert ", diluted -" in shown["text"][1]
    assert shown["srm"]["state"] == "ok"
    assert build_report(look.row, [])["triggered"] is None
    json.dumps(report, allow_nan=False)
