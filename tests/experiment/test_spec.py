"""A specification is refused with the field and the reason, or accepted as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from experiment.errors import SpecError
from experiment.spec import ExperimentSpec, load_spec, parse_spec

Change = Callable[[dict[str, Any]], Any]


def put(*path: Any) -> Change:
    """Set the value at the path; the last element is the value."""

    def change(document: dict[str, Any]) -> None:
        found: Any = document
        for part in path[:-2]:
            found = found[part]
        found[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (put("metrics", 0, "name", "clicks"), "metrics[0]", "unknown metric 'clicks'"),
        (put("metrics", 0, "margin", 0.0), "metrics[0].margin", "greater than 0"),
        (put("metrics", 0, "margin", 1.5), "metrics[0].margin", "less than 1"),
        (put("metrics", 0, "margin", -0.1), "metrics[0].margin", "greater than 0"),
        (put("metrics", 0, "margin", None), "metrics[0]", "needs one"),
        (put("metrics", 0, "role", "hero"), "metrics[0].role", "success"),
        (put("metrics", 0, "cap", 3.0), "metrics[0]", "cannot be capped"),
        (put("metrics", 0, "planning", "baseline", 0), "metrics[0].planning.baseline", "greater than 0"),
        (put("metrics", 1, "name", "ctr"), "metrics[1].name", "twice"),
        (put("metrics", []), "metrics", "at least 1"),
        (put("ramp", "steps", []), "ramp.steps", "at least 1"),
        (put("ramp", "steps", 1, "coverage", 0.005), "ramp", "above the step before"),
        (put("ramp", "steps", 4, "coverage", 0.6), "ramp.steps[4].coverage", "less than or equal to 0.5"),
        (put("treatments", []), "treatments", "at least 1"),
        (put("treatments", 0, "arm", "bf16"), "treatments", "must differ"),
        (put("treatments", 0, "variant", "bf16"), "treatments", "same variant"),
        (put("key", "Has Spaces"), "key", "pattern"),
        (put("key", "k" * 65), "key", "pattern"),
        (put("exposure_window_s", 0), "exposure_window_s", "greater than 0"),
        (put("alpha", {"promote": 0.6}), "alpha.promote", "less than 0.5"),
        (put("surprise", 1), "surprise", "not permitted"),
        (put("max_duration_s", 60), "max_duration_s", "shorter"),
        (put("layer", {"start": 0.5, "end": 0.5}), "layer", "above start"),
        (put("limits", 0, "max", float("nan")), "limits[0].max", ""),
        (put("latency_objective_ms", "fast"), "latency_objective_ms", "valid number"),
    ],
)
def test_a_bad_field_is_named_with_the_reason(
    document: dict[str, Any], change: Change, field: str, reason: str
) -> None:
    change(document)
    with pytest.raises(SpecError) as refused:
        parse_spec(document)
    assert refused.value.field.startswith(field)
    assert reason in str(refused.value)


@pytest.mark.parametrize("missing", ["key", "control", "treatments", "ramp", "metrics"])
def test_what_is_missing_is_named(document: dict[str, Any], missing: str) -> None:
    del document[missing]
    with pytest.raises(SpecError) as refused:
        parse_spec(document)
    assert refused.value.field == missing


@pytest.mark.parametrize("text", ["", "[]", "just words", "key: [unclosed", "a: 1\n  b: 2"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        load_spec(text)


def test_yaml_numbers_and_words_mean_what_people_mean(document: dict[str, Any]) -> None:
    """YAML 1.1 reads 1e-3 as text and `on` as true."""
    text = yaml.safe_dump(document).replace("margin: 0.05", "margin: 5e-2").replace("key: fp8-vs-bf16", "key: on")
    spec = load_spec(text)
    assert spec.metrics[0].margin == 0.05
    assert spec.key == "on"


def test_the_digest_is_of_the_content_not_of_how_it_is_written(document: dict[str, Any]) -> None:
    spec = parse_spec(document)
    assert load_spec(yaml.safe_dump(document, sort_keys=False)).digest == spec.digest
    assert parse_spec(dict(reversed(document.items()))).digest == spec.digest
    document["metrics"][0]["margin"] = 0.051
    assert parse_spec(document).digest != spec.digest


def test_a_specification_survives_json(spec: ExperimentSpec) -> None:
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_the_budget_of_alpha_is_shared(document: dict[str, Any]) -> None:
    spec = parse_spec(document)
    assert (spec.promote_alpha, spec.rollback_alpha) == (0.05, 0.025)
    document["treatments"].append({"arm": "b", "variant": "b"})
    document["ramp"]["steps"] = [{"coverage": 0.1}]
    three = parse_spec(document)
    assert (three.promote_alpha, three.rollback_alpha) == (0.025, 0.0125)


def test_the_schema_names_every_field() -> None:
    schema = ExperimentSpec.model_json_schema()
    assert {"key", "control", "treatments", "ramp", "metrics", "limits"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_a_field_that_came_later_leaves_older_digests_alone(document: dict[str, Any]) -> None:
    older = parse_spec(document)
    fields = older.model_dump(mode="json")
    del fields["shadow"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert older.digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert parse_spec(document | {"shadow": True}).digest != older.digest


def test_slates_of_more_than_two_arms_are_not_compared(document: dict[str, Any]) -> None:
    document["treatments"].append({"arm": "int4", "variant": "int4"})
    document["ramp"]["steps"].pop()
    parse_spec(document)
    with pytest.raises(SpecError, match="exactly one treatment, not 2") as refused:
        parse_spec(document | {"shadow": True})
    assert refused.value.field == "shadow"
