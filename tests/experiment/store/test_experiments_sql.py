"""The repository contract over every store: optimistic locking, an audit row with each change, one routing version."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from experiment.errors import ExperimentExistsError, UnknownExperimentError, VersionConflictError
from experiment.state import NEWEST, ExperimentRow, Latch, State, Verdict


@pytest.fixture
def experiments(stores: Any) -> Any:
    return stores.experiments


def _lived(row: ExperimentRow, make: SimpleNamespace) -> ExperimentRow:
    """A row in which every field has been set."""
    return replace(
        row,
        state=State.PAUSED,
        step=1,
        latches={"ctr/fp8": Latch(1.25, 0.1, 3e-17)},
        srm_log_e=-0.3,
        looks=4,
        started_at=make.start,
        step_started_at=make.start + timedelta(microseconds=1),
        ended_at=make.start + timedelta(hours=1),
        watermark=make.start + timedelta(minutes=5),
        pause_reason="by hand",
        promoted_variant="fp8",
        failures=2,
    )


def test_create_makes_a_ready_experiment_with_its_variances_fixed(experiments: Any, make: SimpleNamespace) -> None:
    row = experiments.create(make.spec(), make.start, "ann")
    assert (row.key, row.run, row.version, row.state) == ("fp8", 1, 1, State.READY)
    assert set(row.tau2) == {"ctr", "watch_time", "likes", "error_share", "slow_share"}
    assert min(row.tau2.values()) > 0
    assert experiments.get("fp8") == row
    assert [(seen.actor, seen.state_after) for seen in experiments.decisions("fp8")] == [("ann", State.READY)]


def test_create_refuses_a_key_that_is_taken_and_keeps_the_first(experiments: Any, make: SimpleNamespace) -> None:
    first = experiments.create(make.spec(), make.start, "ann")
    with pytest.raises(ExperimentExistsError):
        experiments.create(make.spec(), make.start + timedelta(days=1), "bob")
    assert experiments.get("fp8") == first
    assert len(experiments.decisions("fp8")) == 1


@pytest.mark.parametrize("key", ["nobody", "", "no\0body"])
@pytest.mark.parametrize("call", ["get", "decisions", "read_look"])
def test_an_unknown_key_is_named(experiments: Any, make: SimpleNamespace, call: str, key: str) -> None:
    extra = [make.start] if call == "read_look" else []
    with pytest.raises(UnknownExperimentError) as caught:
        getattr(experiments, call)(key, *extra)
    assert repr(key) in str(caught.value)


def test_list_is_newest_first(experiments: Any, make: SimpleNamespace) -> None:
    for i, key in enumerate(("old", "new", "between")):
        experiments.create(make.spec(key), make.start + timedelta(seconds=(0, 9, 5)[i]), "ann")
    assert [row.key for row in experiments.list()] == ["new", "between", "old"]


def test_a_row_with_every_field_set_round_trips(experiments: Any, make: SimpleNamespace) -> None:
    before = experiments.create(make.spec(), make.start, "ann")
    after = make.commit(experiments, _lived(before, make), before)
    assert after == replace(_lived(before, make), version=2)
    assert experiments.get("fp8") == after


def test_decisions_round_trip_oldest_first_and_by_run(experiments: Any, make: SimpleNamespace) -> None:
    row = experiments.create(make.spec(), make.start, "ann")
    for look in (1, 2):
        row = make.commit(experiments, replace(row, looks=look), row)
    row = make.commit(experiments, replace(row, run=2, looks=0), row)
    assert [decision.look for decision in experiments.decisions("fp8", 1)] == [0, 1, 2]
    assert [decision.run for decision in experiments.decisions("fp8")] == [2]
    found = experiments.decisions("fp8", 1)[2]
    assert (found.verdict, found.at, found.spec_digest) == (Verdict.HOLD, make.start, make.spec().digest)
    assert found.evidence == {"users": {"fp8": 5}, "low": None}
    assert [(reason.code, reason.metric, reason.estimate, reason.n) for reason in found.reasons] == [
        ("waiting", "ctr", 0.1, 5)
    ]


def test_a_long_run_is_thinned_but_keeps_its_turns_its_people_and_its_end(
    experiments: Any, make: SimpleNamespace
) -> None:
    row = experiments.create(make.spec(), make.start, "ann")
    row = make.commit(experiments, replace(row, state=State.RUNNING), row, actor="ben")
    for look in range(1, 2 * NEWEST + 1):
        row = make.commit(experiments, replace(row, looks=look, step=1 if look >= 33 else 0), row)
    everything = experiments.decisions("fp8")
    assert len(everything) == 2 * NEWEST + 2
    assert experiments.decisions("fp8", thinned_to=10_000) == everything
    thinned = experiments.decisions("fp8", thinned_to=10)
    assert [one.actor for one in thinned[:2]] == ["ann", "ben"]
    assert [one.look for one in thinned[2:-NEWEST]] == [33, 40, 80, 120, 160, 200]
    assert list(thinned[-NEWEST:]) == list(everything[-NEWEST:])


def test_a_commit_at_an_old_version_writes_nothing(experiments: Any, make: SimpleNamespace) -> None:
    before = experiments.create(make.spec(), make.start, "ann")
    winner = make.commit(experiments, replace(before, looks=1), before)
    with pytest.raises(VersionConflictError):
        make.commit(experiments, replace(before, step=1, looks=7), before)
    assert experiments.get("fp8") == winner
    assert len(experiments.decisions("fp8")) == 2
    assert experiments.routing_version() == 0


def test_a_commit_of_an_unknown_experiment_conflicts(experiments: Any, make: SimpleNamespace) -> None:
    before = experiments.create(make.spec(), make.start, "ann")
    with pytest.raises(VersionConflictError):
        make.commit(experiments, replace(before, key="nobody"), before)


def test_of_commits_at_one_version_at_once_one_wins(experiments: Any, make: SimpleNamespace) -> None:
    before = experiments.create(make.spec(), make.start, "ann")
    ready = Barrier(6)

    def race(looks: int) -> int:
        ready.wait()
        try:
            return int(make.commit(experiments, replace(before, looks=looks), before).looks)
        except VersionConflictError:
            return 0

    with ThreadPoolExecutor(6) as pool:
        won = [looks for looks in pool.map(race, range(1, 7)) if looks]
    assert len(won) == 1
    assert (experiments.get("fp8").looks, experiments.get("fp8").version) == (won[0], 2)
    assert [decision.look for decision in experiments.decisions("fp8")] == [0, *won]


def test_the_routing_version_grows_with_what_changes_the_routing(experiments: Any, make: SimpleNamespace) -> None:
    row = experiments.create(make.spec(), make.start, "ann")
    versions = [experiments.routing_version()]
    for change in ({"looks": 1}, {"state": State.RUNNING}, {"looks": 2}, {"step": 1}, {"run": 2, "step": 0}):
        row = make.commit(experiments, replace(row, **change), row)
        versions.append(experiments.routing_version())
    experiments.set_override("fp8", "ann", "fp8", make.start, "bob")
    versions.append(experiments.routing_version())
    assert versions == [0, 0, 1, 1, 2, 3, 4]


def test_overrides_are_set_changed_and_lifted(experiments: Any, make: SimpleNamespace) -> None:
    for key in ("fp8", "other"):
        experiments.create(make.spec(key), make.start, "ann")
    assert experiments.overrides() == {}
    experiments.set_override("fp8", "ünï", "fp8", make.start, "bob")
    experiments.set_override("fp8", "eve", "bf16", make.start, "bob")
    experiments.set_override("other", "ünï", "bf16", make.start, "bob")
    experiments.set_override("fp8", "ünï", "bf16", make.start, "bob")
    experiments.set_override("fp8", "eve", None, make.start, "bob")
    assert experiments.overrides() == {"fp8": {"ünï": "bf16"}, "other": {"ünï": "bf16"}}
    experiments.set_override("other", "ünï", None, make.start, "bob")
    experiments.set_override("other", "nobody", None, make.start, "bob")
    assert experiments.overrides() == {"fp8": {"ünï": "bf16"}}
    with pytest.raises(UnknownExperimentError):
        experiments.set_override("nobody", "ann", "fp8", make.start, "bob")


def test_an_answer_is_kept_for_its_idempotency_key(experiments: Any, make: SimpleNamespace) -> None:
    assert experiments.recall("k1") is None
    answer = {"status": 200, "body": {"state": "promoted", "steps": [0.1, None]}}
    experiments.remember("k1", "digest", answer, make.start)
    experiments.remember("k2", "other", {}, make.start)
    assert experiments.recall("k1") == ("digest", answer)
    assert experiments.recall("k2") == ("other", {})
