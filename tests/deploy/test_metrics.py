"""Alerts and dashboard ask for what is really exported, under its real labels."""

from __future__ import annotations

import inspect
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from experiment.events import Served
from model.catalogue import Catalogue
from serving import app
from serving.client import HttpVariantClient
from serving.settings import Settings
from serving.spool import Spool
from tests.deploy.documents import DEPLOY, document, expressions

EXPRESSIONS = expressions()
METRIC = re.compile(r"\b(?:crossfade|ray|haproxy)_\w+")
SELECTOR = re.compile(r"\b((?:crossfade|ray)_\w+)\{([^}]*)\}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels by name of everything that a real gateway exports after one answer and one batch of reports."""
    home = tmp_path_factory.mktemp("home")
    (home / "bf16").mkdir()
    catalogue = Catalogue(("item",), ("",), ((),))
    (home / "bf16" / "catalogue.json").write_text(catalogue.to_json(), encoding="utf-8")
    (home / "variants.json").write_text(json.dumps({"bf16": str(home / "bf16")}))
    settings = Settings(home=home, redis_url="redis://127.0.0.1:1")
    with Spool(home / "spool" / "test", settings.spool_max_bytes, settings.spool_segment_bytes) as spool:
        services = app._services(settings, spool, HttpVariantClient(settings.url, "key"))
        services.telemetry.observe(_served())
        services.telemetry.count_events(1, 1)
        text = services.telemetry.text().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        name: {label for one in samples if one.name == name for label in one.labels}
        for name in {s.name for s in samples}
    }


def _served() -> Served:
    return Served(
        request_id="r",
        user_id="u",
        experiment="e",
        run=1,
        arm="fp8",
        bucket=0.5,
        phase=0,
        served_variant="fp8",
        table_version=1,
        reason="SPLIT",
        fallback=None,
        failed=False,
        slow=False,
        forced=False,
        latency_ms=5.0,
        received_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.fixture(scope="module")
def of_ray() -> str:
    """Ray Serve's sources, and those of the agent that reports on nodes."""
    root = Path(inspect.getfile(ray)).parent
    paths = [*(root / "serve").rglob("*.py"), root / "dashboard" / "modules" / "reporter" / "reporter_agent.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def _base(name: str) -> str:
    """As Ray's code writes it: without its prefix and what the format appends."""
    return re.sub(r"_(bucket|sum|count|total)$", "", name.removeprefix("ray_"))


@pytest.mark.parametrize("asker", EXPRESSIONS)
def test_every_metric_is_exported(asker: str, exported: dict[str, set[str]], of_ray: str) -> None:
    names = set(METRIC.findall(EXPRESSIONS[asker]))
    assert names
    for name in names:
        if name.startswith("crossfade_"):
            assert name in exported
        else:
            assert name.startswith("ray_")
            assert f'"{_base(name)}"' in of_ray, name


def test_a_metric_that_nobody_exports_would_be_seen(exported: dict[str, set[str]], of_ray: str) -> None:
    assert "crossfade_requests" not in exported
    assert f'"{_base("ray_serve_no_such_thing_total")}"' not in of_ray


@pytest.mark.parametrize("asker", EXPRESSIONS)
def test_labels_are_those_that_the_metric_has(asker: str, exported: dict[str, set[str]]) -> None:
    expression = EXPRESSIONS[asker]
    for name, matchers in SELECTOR.findall(expression):
        if name.startswith("crossfade_"):
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|=|!~)", matchers)) <= exported[name]
    grouped = {one.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for one in group.split(",")}
    ours = [exported[name] for name in METRIC.findall(expression) if name.startswith("crossfade_")]
    if ours:
        assert grouped <= set.intersection(*ours) | {"le"}


@pytest.mark.parametrize("asker", EXPRESSIONS)
def test_brackets_close(asker: str) -> None:
    expression = EXPRESSIONS[asker]
    for left, right in ("()", "{}", "[]"):
        assert expression.count(left) == expression.count(right)


def test_outcomes_are_those_that_are_counted() -> None:
    asked = {one for text in EXPRESSIONS.values() for one in re.findall(r'outcome!?="(\w+)"', text)}
    source = inspect.getsource(__import__("serving.telemetry", fromlist=["Telemetry"]))
    assert asked == {"ok", "failed", "fallback", "refused"}
    assert all(f'"{outcome}"' in source for outcome in asked)


def test_alerts_say_how_bad_and_what_it_means() -> None:
    rules = [rule for group in document("prometheus/alerts.yml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_spool_alarm_comes_at_half_of_the_default() -> None:
    limit = EXPRESSIONS["CrossfadeSpoolFilling"].rpartition(">")[2]
    assert 2 * int(limit) == Settings.model_fields["spool_max_bytes"].default


def test_rule_files_and_targets_are_there() -> None:
    services = document("compose.yaml")["services"]
    exposed = {"8700", services["crossfade"]["environment"]["CROSSFADE_RAY_METRICS_PORT"]}
    exposed.add(services["crossfade"]["environment"]["RAY_SERVE_HAPROXY_METRICS_PORT"])
    config = document("prometheus/prometheus.yml")
    targets = {one for job in config["scrape_configs"] for part in job["static_configs"] for one in part["targets"]}
    assert targets == {f"crossfade:{port}" for port in exposed}
    for name in ("prometheus", "kubernetes"):
        for rules in document(f"prometheus/{name}.yml")["rule_files"]:
            assert (DEPLOY / "prometheus" / rules).is_file()


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
