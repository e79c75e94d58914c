"""What a look reads: the same moments as from the raw rows, over closed windows only, at the writers' watermark."""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiment.events import Record
from experiment.metrics import METRICS
from stats.moments import Moments

USERS = 60


@pytest.fixture
def running(stores: Any, make: SimpleNamespace) -> Any:
    stores.experiments.create(make.spec(), make.start, "tester")
    return stores


def _traffic(make: SimpleNamespace, seed: int) -> list[Record]:
    """Users of both arms with skewed watch times, exposed one after another; every tenth comes back much later."""
    dice, records = random.Random(seed), []
    for i in range(USERS):
        arm, user, at = ("fp8", "bf16")[i % 2], f"u{i}", 60.0 * i
        for visit in range(dice.randint(1, 4)):
            request, when = f"r{i}.{visit}", at + 100 * visit
            outcome = {"failed": dice.random() < 0.1, "slow": dice.random() < 0.2}
            outcome["fallback"] = "bf16" if dice.random() < 0.1 else None
            records.append(make.served(request, user, when, arm=arm, phase=int(i > 40), **outcome))
            for item in range(dice.randint(0, 6)):
                name = f"{request}.{item}"
                records.append(make.event(f"{name}i", "impression", request, f"i{item}", when + 1))
                if dice.random() < 0.3:
                    records.append(make.event(f"{name}c", "click", request, f"i{item}", when + 2))
                    seconds = dice.lognormvariate(4.5, 1.5)
                    records.append(make.event(f"{name}w", "watch", request, f"i{item}", when + 3, value=seconds))
                if dice.random() < 0.1:
                    records.append(make.event(f"{name}l", "like", request, f"i{item}", when + 4))
    dice.shuffle(records)
    return records


def _expected(make: SimpleNamespace, records: list[Record], arm: str, closed: int) -> dict[str, Moments]:
    totals = make.naive(records)
    rows = [totals[f"u{i}"] for i in range(closed) if ("fp8", "bf16")[i % 2] == arm]
    found = {}
    for name in ("ctr", "watch_time", "likes", "error_share", "slow_share"):
        metric = METRICS[name]
        x = np.array([sum(row[column] for column in metric.numerator) for row in rows])
        x = np.minimum(x, make.cap) if name == "watch_time" else x
        y = None if metric.denominator is None else np.array([row[metric.denominator] for row in rows])
        found[name] = Moments.from_values(x, y)
    return found


def _closed_until(make: SimpleNamespace, users: int) -> datetime:
    """A time by which the windows of the first `users` users have closed."""
    closed: datetime = make.start + timedelta(seconds=60 * (users - 1) + 3600)
    return closed


@pytest.mark.parametrize("closed", [0, 1, 2, 31, USERS])
def test_aggregates_equal_the_moments_of_the_raw_rows(running: Any, make: SimpleNamespace, closed: int) -> None:
    records = _traffic(make, seed=closed)
    for start in range(0, len(records), 97):
        running.log.append(records[start : start + 97])
    watermark = _closed_until(make, closed)
    running.log.heartbeat("w", watermark)
    look = running.experiments.read_look("fp8", watermark)
    assert look.watermark == watermark
    for arm, offset in (("fp8", 0), ("bf16", 1)):
        expected = _expected(make, records, arm, closed)
        assert look.arms[arm].closed_users == len(range(offset, closed, 2))
        assert set(look.arms[arm].moments) == set(expected)
        for name, moments in expected.items():
            np.testing.assert_allclose(astuple(look.arms[arm].moments[name]), astuple(moments), rtol=1e-12, atol=1e-12)


def test_exposed_users_are_counted_by_the_phase_of_their_first_request(running: Any, make: SimpleNamespace) -> None:
    running.log.append(_traffic(make, seed=5))
    look = running.experiments.read_look("fp8", make.start)
    assert look.arms["fp8"].exposed_by_phase == (21, 9)
    assert look.arms["bf16"].exposed_by_phase == (20, 10)


def test_without_writers_nothing_is_known_to_be_closed(running: Any, make: SimpleNamespace) -> None:
    running.log.append(_traffic(make, seed=1))
    look = running.experiments.read_look("fp8", make.start + timedelta(days=9))
    assert look.watermark is None
    assert look.arms["fp8"].closed_users == 0
    assert look.arms["fp8"].moments["ctr"] == Moments.empty()
    assert look.arms["fp8"].totals["requests"] > 0


def test_the_slowest_live_writer_holds_the_watermark(running: Any, make: SimpleNamespace) -> None:
    def watermark(at_s: float) -> float | None:
        found = running.experiments.read_look("fp8", make.start + timedelta(seconds=at_s)).watermark
        return None if found is None else (found - make.start).total_seconds()

    running.log.heartbeat("a", make.start + timedelta(seconds=100))
    running.log.heartbeat("b", make.start + timedelta(seconds=40))
    assert watermark(101) == 40
    running.log.heartbeat("b", make.start + timedelta(seconds=120))
    assert watermark(121) == 100
    running.log.retire("a")
    running.log.retire("never-seen")
    assert watermark(122) == 120
    assert watermark(120 + 899) == 120
    assert watermark(120 + 901) is None, "a writer silent for a quarter of an hour is lost"


def test_a_look_reads_its_own_run_only(running: Any, make: SimpleNamespace) -> None:
    running.log.append([make.served("r1"), make.served("r2", "bob", run=2), make.served("r3", "cid", experiment="x")])
    before = running.experiments.get("fp8")
    assert running.experiments.read_look("fp8", make.start).arms["fp8"].exposed_by_phase == (1, 0)
    make.commit(running.experiments, replace(before, run=2), before)
    look = running.experiments.read_look("fp8", make.start)
    assert look.row.run == 2
    assert look.arms["fp8"].totals["requests"] == 1


def test_an_arm_that_the_specification_does_not_know_is_left_out(running: Any, make: SimpleNamespace) -> None:
    running.log.append([make.served("r1", arm="of-an-older-specification")])
    look = running.experiments.read_look("fp8", make.start)
    assert {arm: sum(aggregate.exposed_by_phase) for arm, aggregate in look.arms.items()} == {"fp8": 0, "bf16": 0}


def test_triggered_users_and_the_others_have_moments_of_their_own(stores: Any, make: SimpleNamespace) -> None:
    """The first request's comparison decides; a user without one is in neither part."""
    stores.experiments.create(make.spec(shadow=True), make.start, "tester")
    dice, records, flags = random.Random(4), _traffic(make, seed=4), dict[int, int | None]()
    for i in range(USERS):
        flags[i] = dice.choice([None, 0, 1])
        if flags[i] is not None:
            records.append(make.event(f"differs:r{i}.0", "differs", f"r{i}.0", "", 60.0 * i + 1, value=float(flags[i])))
        records.append(make.event(f"differs:r{i}.1", "differs", f"r{i}.1", "", 60.0 * i + 101, value=dice.random()))
    dice.shuffle(records)
    for start in range(0, len(records), 97):
        stores.log.append(records[start : start + 97])
    closed = 41
    watermark = _closed_until(make, closed)
    stores.log.heartbeat("w", watermark)
    look, totals = stores.experiments.read_look("fp8", watermark), make.naive(records)
    for arm, flag in ((arm, flag) for arm in ("fp8", "bf16") for flag in (0, 1)):
        rows = [totals[f"u{i}"] for i in range(closed) if ("fp8", "bf16")[i % 2] == arm and flags[i] == flag]
        found = look.arms[arm].triggered if flag else look.arms[arm].rest
        ctr = Moments.from_values([row["clicks"] for row in rows], [row["impressions"] for row in rows])
        watched = Moments.from_values(np.minimum([row["watch_s"] for row in rows], make.cap))
        assert rows
        for name, moments in (("ctr", ctr), ("watch_time", watched)):
            np.testing.assert_allclose(astuple(found[name]), astuple(moments), rtol=1e-12, atol=1e-12)


def test_without_shadow_nobody_is_triggered(running: Any, make: SimpleNamespace) -> None:
    running.log.append([*_traffic(make, seed=1), make.event("differs:r0.0", "differs", "r0.0", "", 1)])
    running.log.heartbeat("w", _closed_until(make, USERS))
    look = running.experiments.read_look("fp8", _closed_until(make, USERS))
    assert [(aggregate.triggered, aggregate.rest) for aggregate in look.arms.values()] == [({}, {})] * 2
