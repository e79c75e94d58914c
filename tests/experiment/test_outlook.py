"""The outlook follows the measured variance, and leaves out what it cannot know."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from experiment.evidence import Evidence, weigh
from experiment.outlook import outlook
from experiment.report import build_report
from experiment.spec import ExperimentSpec
from experiment.state import State
from tests.experiment.factories import NOW, aggregate, look_at, running_row, visitors

USERS = 3_000


@pytest.fixture
def row(spec: ExperimentSpec) -> Any:
    return running_row(spec, step=4, step_started_at=NOW - timedelta(hours=12), watermark=NOW)


def evidence(row: Any, users: int = USERS) -> Evidence:
    rng = np.random.default_rng(1)
    return weigh(look_at(row, [aggregate(arm, visitors(users, rng)) for arm in ("fp8", "bf16")]))


def test_users_days_and_margin_agree_with_each_other(row: Any) -> None:
    ctr = outlook(row, evidence(row))[0]
    assert (ctr.metric, ctr.arm, ctr.users) == ("ctr", "fp8", USERS)
    assert ctr.needed is not None
    assert ctr.needed > USERS
    assert ctr.margin_now is not None
    assert 0.05 < ctr.margin_now < 0.2, "above the margin of 5 %, which needs more users"
    assert ctr.margin_now == pytest.approx(0.05 * np.sqrt(ctr.needed / USERS), rel=0.15), "n grows with 1 / margin²"
    per_day = USERS / 0.5
    assert ctr.days == pytest.approx((ctr.needed - USERS) / per_day)
    assert ctr.expected_at == (NOW + timedelta(days=ctr.days)).isoformat()
    assert f"{ctr.needed:,}" in ctr.text


def test_four_times_the_users_halve_what_can_be_found(row: Any) -> None:
    few, many = (outlook(row, evidence(row, users))[0] for users in (USERS, 4 * USERS))
    assert few.detectable is not None
    assert many.detectable == pytest.approx(few.detectable / 2, rel=0.1)


def test_nothing_is_made_up(row: Any, spec: ExperimentSpec) -> None:
    ended = outlook(replace(row, state=State.PROMOTED), evidence(row))[0]
    assert ended.days is None
    assert ended.expected_at is None
    empty = weigh(look_at(row, [aggregate(arm, visitors(0, np.random.default_rng(0))) for arm in ("fp8", "bf16")]))
    for found in outlook(row, empty):
        assert (found.needed, found.detectable, found.margin_now, found.days) == (None, None, None, None)
    assert build_report(running_row(spec), [])["outlook"] == []


def test_enough_users_have_no_days_to_go(row: Any) -> None:
    found = outlook(row, evidence(row, 400_000))[0]
    assert found.days == 0
    assert "enough have closed" in found.text
