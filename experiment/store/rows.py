"""Between database rows and the nouns of `experiment.state`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiment.spec import ExperimentSpec
from experiment.state import DecisionRow, ExperimentRow, Latch, Reason, State, Verdict
from experiment.store.schema import micros, moment

_TIMES = ("created_at", "started_at", "step_started_at", "ended_at", "watermark")


def experiment_to_row(row: ExperimentRow) -> dict[str, Any]:
    """Column values of the table `experiments`."""
    values = {name: getattr(row, name) for name in ExperimentRow.__dataclass_fields__}
    for name in _TIMES:
        values[name] = None if values[name] is None else micros(values[name])
    values["state"] = row.state.value
    values["spec"] = row.spec.model_dump_json()
    values["exposure_window_us"] = round(row.spec.exposure_window_s * 1e6)
    values["tau2"] = json.dumps(dict(row.tau2))
    values["latches"] = json.dumps({key: asdict(latch) for key, latch in row.latches.items()})
    return values


def experiment_from_row(values: Mapping[str, Any]) -> ExperimentRow:
    """Inverse of `experiment_to_row`."""
    fields = {name: values[name] for name in ExperimentRow.__dataclass_fields__}
    for name in _TIMES:
        fields[name] = moment(fields[name])
    fields["state"] = State(fields["state"])
    fields["spec"] = ExperimentSpec.model_validate_json(fields["spec"])
    fields["tau2"] = json.loads(fields["tau2"])
    fields["latches"] = {key: Latch(**latch) for key, latch in json.loads(fields["latches"]).items()}
    return ExperimentRow(**fields)


def decision_to_row(decision: DecisionRow) -> dict[str, Any]:
    """Column values of the table `decisions`."""
    values = {name: getattr(decision, name) for name in DecisionRow.__dataclass_fields__}
    values["at"] = micros(decision.at)
    for name in ("verdict", "state_before", "state_after"):
        values[name] = values[name].value
    values["reasons"] = json.dumps([asdict(reason) for reason in decision.reasons], allow_nan=False)
    values["evidence"] = json.dumps(dict(decision.evidence), allow_nan=False)
    return values


def decision_from_row(values: Mapping[str, Any]) -> DecisionRow:
    """Inverse of `decision_to_row`."""
    fields = {name: values[name] for name in DecisionRow.__dataclass_fields__}
    fields["at"] = moment(fields["at"])
    fields["verdict"] = Verdict(fields["verdict"])
    fields["state_before"], fields["state_after"] = State(fields["state_before"]), State(fields["state_after"])
    reasons: Sequence[Mapping[str, Any]] = json.loads(fields["reasons"])
    fields["reasons"] = tuple(Reason(**reason) for reason in reasons)
    fields["evidence"] = json.loads(fields["evidence"])
    return DecisionRow(**fields)
