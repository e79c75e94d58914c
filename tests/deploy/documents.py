"""The files of deploy/, parsed more strictly than their own readers do: a key that is there twice is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
YAML_FILES = sorted(path for ending in ("*.yaml", "*.yml", "*.yaml.example") for path in DEPLOY.rglob(ending))
NAME = re.compile(r"\b(CROSSFADE_[A-Z_]+|RAY_[A-Za-z_]*[A-Za-z])\b")
"""An environment variable that Crossfade or Ray would read."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping with two equal keys, of which YAML's readers silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        written = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if len(written) != len(set(written)):
            raise yaml.constructor.ConstructorError(None, None, f"a key is there twice: {written}", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(path: Path) -> list[Any]:
    """Every document of a YAML file."""
    return list(yaml.load_all(path.read_text(encoding="utf-8"), _UniqueKeys))


def document(name: str) -> Any:
    """The only document of deploy/<name>."""
    (found,) = documents(DEPLOY / name)
    return found


def text_document(text: str) -> Any:
    """YAML inside of YAML."""
    return yaml.load(text, _UniqueKeys)  # noqa: S506 - same


def objects() -> list[Mapping[str, Any]]:
    """All Kubernetes objects, those of the template, too."""
    paths = sorted((DEPLOY / "kubernetes").iterdir())
    return [found for path in paths for found in documents(path)]


def of_kind(kind: str) -> dict[str, Mapping[str, Any]]:
    """Kubernetes objects of one kind by name."""
    return {found["metadata"]["name"]: found for found in objects() if found["kind"] == kind}


def pods() -> dict[str, Mapping[str, Any]]:
    """Pod templates of the RayService by group."""
    cluster = of_kind("RayService")["crossfade"]["spec"]["rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]} | workers


def serve_configs() -> dict[str, Mapping[str, Any]]:
    """The Serve config files by where they are."""
    service = of_kind("RayService")["crossfade"]
    return {
        "ray/serve.yaml": document("ray/serve.yaml"),
        "kubernetes/rayservice.yaml": text_document(service["spec"]["serveConfigV2"]),
    }


def expressions() -> dict[str, str]:
    """Every PromQL expression by the alert or panel that asks it."""
    groups = document("prometheus/alerts.yml")["groups"]
    alerts = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    return alerts | panels | {"variable": dashboard["templating"]["list"][1]["query"]["query"]}


def strings(value: object) -> Iterator[str]:
    """Every text in a document, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
