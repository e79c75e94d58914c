"""The Kubernetes files hang together: what one names, another one makes; what is asked for, somebody offers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import pytest

from serving.settings import Settings
from tests.deploy.documents import document, objects, of_kind, pods, serve_configs, strings

PODS = pods()
SERVICE = of_kind("RayService")["crossfade"]
CLUSTER = SERVICE["spec"]["rayClusterConfig"]
APPLICATIONS = serve_configs()["kubernetes/rayservice.yaml"]["applications"]


def _specs() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every pod's specification, the migration's too."""
    for name, template in PODS.items():
        yield name, template["spec"]
    yield "migrate", of_kind("Job")["crossfade-migrate"]["spec"]["template"]["spec"]


def _containers() -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(pod, its specification, one of its containers)."""
    for name, spec in _specs():
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            yield f"{name}/{container['name']}", spec, container


def _offered() -> dict[str, float]:
    """Custom resources of the whole Ray cluster."""
    found: dict[str, float] = {}
    groups = [(1, CLUSTER["headGroupSpec"]), *((group["replicas"], group) for group in CLUSTER["workerGroupSpecs"])]
    for count, group in groups:
        text = group["rayStartParams"]["resources"].strip("'")
        for name, amount in json.loads(json.loads(text)).items():
            found[name] = found.get(name, 0) + count * amount
    return found


def test_everything_but_the_cluster_wide_is_in_one_namespace() -> None:
    for found in objects():
        if found["kind"] not in {"Namespace", "StorageClass", "PersistentVolume"}:
            assert found["metadata"]["namespace"] == "crossfade", found["metadata"]["name"]


def test_what_pods_refer_to_is_made_here() -> None:
    made = {kind: set(of_kind(kind)) for kind in ("Secret", "ConfigMap", "PersistentVolumeClaim")}
    for _, spec, container in _containers():
        for source in container.get("envFrom", ()):
            for kind, reference in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                assert source.get(reference, {"name": None})["name"] in made[kind] | {None}
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        for volume in spec.get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in made["PersistentVolumeClaim"]
            for source in volume.get("projected", {}).get("sources", ()):
                for kind, reference in (("ConfigMap", "configMap"), ("Secret", "secret")):
                    assert source.get(reference, {"name": None})["name"] in made[kind] | {None}


def test_the_homes_files_are_those_that_the_service_reads() -> None:
    settings = Settings()
    wanted = {path.name for path in (settings.secret_path, settings.tokens_path, settings.variants_path)}
    made = set(of_kind("Secret")["crossfade-home"]["stringData"]) | set(
        of_kind("ConfigMap")["crossfade-variants"]["data"]
    )
    assert made == wanted
    tokens = json.loads(of_kind("Secret")["crossfade-home"]["stringData"]["tokens.json"])
    assert {entry["scope"] for entry in tokens.values()} == {"read", "events", "operate", "admin"}


def test_gateways_know_the_variants_that_are_deployed() -> None:
    book = json.loads(of_kind("ConfigMap")["crossfade-variants"]["data"]["variants.json"])
    deployed = {
        one["args"]["name"]: one["args"]["checkpoint"]
        for one in APPLICATIONS
        if one["import_path"] == "serving.app:variant"
    }
    assert book == deployed
    assert of_kind("ConfigMap")["crossfade-environment"]["data"]["CROSSFADE_DEFAULT_VARIANT"] in book


def test_replicas_find_the_resources_that_they_ask_for() -> None:
    asked: dict[str, float] = {}
    for one in APPLICATIONS:
        args = one.get("args", {})
        count = args.get("gateway_replicas", args.get("variant_replicas", 1))
        for name, amount in one["deployments"][0]["ray_actor_options"]["resources"].items():
            asked[name] = asked.get(name, 0) + count * amount
    assert asked == _offered()


def test_gpus_are_where_the_variants_are() -> None:
    for group in CLUSTER["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        variant = next((one for one in APPLICATIONS if one["name"] == f"variant-{group['groupName']}"), None)
        assert gpus == (0 if variant is None else variant["args"]["variant_gpus"])
        assert container["image"].endswith("-gpu" if gpus else "-cpu")


def test_each_gateway_group_has_a_disk_of_its_own_under_the_spool() -> None:
    home = of_kind("ConfigMap")["crossfade-environment"]["data"]["CROSSFADE_HOME"]
    claims = []
    for name, template in PODS.items():
        if template["metadata"]["labels"]["app.kubernetes.io/component"] != "gateway":
            continue
        (container,) = template["spec"]["containers"]
        (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == f"{home}/spool"]
        volume = next(one for one in template["spec"]["volumes"] if one["name"] == mount["name"])
        claims.append(volume["persistentVolumeClaim"]["claimName"])
        group = next(one for one in CLUSTER["workerGroupSpecs"] if one["groupName"] == name)
        assert group["minReplicas"] == group["maxReplicas"] == group["replicas"] == 1
    assert len(claims) == len(set(claims)) == 2
    for volume in of_kind("PersistentVolume").values():
        assert "local" in volume["spec"]
        assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
        assert volume["spec"]["claimRef"]["name"] in claims


def test_a_disk_is_larger_than_the_spool_may_grow() -> None:
    for volume in of_kind("PersistentVolume").values():
        gib = int(volume["spec"]["capacity"]["storage"].removesuffix("Gi"))
        assert gib * 2**30 > 4 * Settings.model_fields["spool_max_bytes"].default


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy"])
def test_selectors_select_pods(kind: str) -> None:
    labels = [template["metadata"]["labels"] for template in PODS.values()]
    assert of_kind(kind)
    for found in of_kind(kind).values():
        selector = found["spec"].get("selector", found["spec"].get("podSelector"))["matchLabels"]
        assert any(selector.items() <= one.items() for one in labels), found["metadata"]["name"]


def test_every_component_has_a_budget() -> None:
    budgets = of_kind("PodDisruptionBudget").values()
    covered = {one["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] for one in budgets}
    assert covered == {template["metadata"]["labels"]["app.kubernetes.io/component"] for template in PODS.values()}


def test_ports_are_those_that_settings_and_ray_use() -> None:
    environment = of_kind("ConfigMap")["crossfade-environment"]["data"]
    assert environment["CROSSFADE_PORT"] == str(Settings.model_fields["port"].default)
    first = int(environment["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
    expected = {
        "serve": int(environment["CROSSFADE_PORT"]),
        "haproxy": int(environment["RAY_SERVE_HAPROXY_METRICS_PORT"]),
        "replica-first": first,
        "replica-next": first + 1,
    }
    seen = set()
    for _, _, container in _containers():
        for port in container.get("ports", ()):
            seen.add(port["name"])
            assert port["containerPort"] == expected.get(port["name"], port["containerPort"])
    assert set(expected) <= seen


def test_prometheus_may_reach_every_port_that_it_scrapes() -> None:
    patterns = [
        rule["regex"]
        for job in document("prometheus/kubernetes.yml")["scrape_configs"]
        for rule in job["relabel_configs"]
        if rule.get("action") == "keep"
    ]
    ports = [port for _, _, container in _containers() for port in container.get("ports", ())]
    scraped = {port["containerPort"] for port in ports if any(re.fullmatch(one, port["name"]) for one in patterns)}
    for pattern in patterns:
        assert any(re.fullmatch(pattern, port["name"]) for port in ports), pattern
    (policy,) = of_kind("NetworkPolicy").values()
    (rule,) = [one for one in policy["spec"]["ingress"] if "monitoring" in set(strings(one))]
    assert {port["port"] for port in rule["ports"]} == scraped


def test_no_pod_may_more_than_it_needs() -> None:
    for name, spec, container in _containers():
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"], name
        assert not any("PASSWORD" in text for text in strings(list(container.get("env", ()))))


def test_all_containers_run_this_version() -> None:
    for name, _, container in _containers():
        tag = container["image"].rpartition(":")[2]
        assert tag in {f"{version('crossfade')}-cpu", f"{version('crossfade')}-gpu"}, name
    assert CLUSTER["rayVersion"] == version("ray")
