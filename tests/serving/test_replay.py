"""Stored looks come out the same, and a verdict that would come out differently today is seen."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from experiment.controller import look, perform
from experiment.ramp import Action
from experiment.report import decision_fields
from experiment.spec import parse_spec
from experiment.state import ExperimentRow, LookInput, Verdict
from experiment.store.memory import MemoryExperimentRepository, MemoryTables
from serving.replay import replayed
from tests.experiment.factories import DOCUMENT, NOW, aggregate, look_at, visitors

Document = dict[str, Any]


class Repository(MemoryExperimentRepository):
    """Looks see made-up users: a few more each time, whose clicks fall off at the end."""

    looked = 0

    def read_look(self, key: str, at: Any) -> LookInput:
        self.looked += 1
        rng = np.random.default_rng(self.looked)
        ctr = 0.1 if self.looked < 4 else 0.02
        users = 500 * self.looked
        return look_at(
            self.get(key), [aggregate("fp8", visitors(users, rng, ctr)), aggregate("bf16", visitors(users, rng))]
        )


def shown(row: ExperimentRow) -> Document:
    """An experiment as the API gives it."""
    return {"key": row.key, "run": row.run, "spec": row.spec.model_dump(mode="json"), "spec_digest": row.spec_digest}


@pytest.fixture
def run() -> tuple[Document, list[Document]]:
    """(experiment, decisions) as they come over HTTP: six looks and two actions of a person."""
    repository, now = Repository(MemoryTables()), NOW
    repository.create(parse_spec(DOCUMENT), now, "ann")
    perform(repository, "fp8-vs-bf16", Action.START, "go", "ann", now, "v1")
    while not repository.get("fp8-vs-bf16").state.is_final:
        now += timedelta(seconds=61)
        look(repository, "fp8-vs-bf16", now, "v1")
    row = repository.get("fp8-vs-bf16")
    lines = [decision_fields(one) | {"evidence": one.evidence} for one in repository.decisions(row.key)]
    experiment, decisions = json.loads(json.dumps([shown(row), lines], allow_nan=False))
    return experiment, decisions


def test_every_look_comes_out_as_it_was_stored(run: tuple[Document, list[Document]]) -> None:
    experiment, decisions = run
    found = list(replayed(experiment, decisions))
    assert all(line.same for line in found)
    assert [line.look for line in found] == list(range(1, len(found) + 1))
    assert [line.stored.value for line in found] == [line["verdict"] for line in decisions if line["actor"] == "gate"]
    assert {line.verdict for line in found} == {Verdict.ADVANCE, Verdict.ROLLBACK}


def test_actions_of_people_are_no_looks(run: tuple[Document, list[Document]]) -> None:
    experiment, decisions = run
    people = [line for line in decisions if line["actor"] == "ann"]
    assert people
    assert list(replayed(experiment, people)) == []


def test_a_verdict_that_comes_out_differently_is_seen_with_todays_reasons(run: tuple[Document, list[Document]]) -> None:
    experiment, decisions = run
    last = decisions[-1]
    last["verdict"] = "promote"
    (found,) = replayed(experiment, [last])
    assert (found.stored, found.verdict, found.same) == (Verdict.PROMOTE, Verdict.ROLLBACK, False)
    assert [asdict(reason) for reason in found.reasons] == last["reasons"]


def test_the_same_verdict_for_another_reason_is_not_the_same(run: tuple[Document, list[Document]]) -> None:
    experiment, decisions = run
    last = decisions[-1]
    last["reasons"][0]["estimate"] += 0.001
    (found,) = replayed(experiment, [last])
    assert found.verdict is found.stored
    assert not found.same


def test_another_specification_decides_differently(run: tuple[Document, list[Document]]) -> None:
    """The planted difference: a gate that allows any harm."""
    experiment, decisions = run
    for metric in experiment["spec"]["metrics"]:
        metric["margin"] = 0.99
    experiment["spec"]["alpha"]["rollback"] = 1e-12
    assert not all(line.same for line in replayed(experiment, decisions))
