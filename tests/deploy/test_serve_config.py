"""The Serve config files: Ray accepts them, and what they import takes what they pass."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from serving import app
from serving.errors import ConfigurationError, InvalidRequestError
from serving.serve_variants import application_of
from serving.settings import Settings
from tests.deploy.documents import serve_configs

CONFIGS = serve_configs()
APPLICATIONS = [(place, one) for place, config in CONFIGS.items() for one in config["applications"]]
IDS = [f"{place}-{one['name']}" for place, one in APPLICATIONS]


@pytest.mark.parametrize("place", CONFIGS)
def test_ray_accepts_the_file(place: str) -> None:
    ServeDeploySchema.model_validate(CONFIGS[place])


@pytest.mark.parametrize(("place", "application"), APPLICATIONS, ids=IDS)
def test_the_import_path_builds_the_application(place: str, application: Mapping[str, Any], tmp_path: Path) -> None:
    module, _, name = application["import_path"].partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert len(inspect.signature(builder).parameters) == 1
    built = builder(dict(application.get("args", {})) | {"home": str(tmp_path)})
    assert isinstance(built, Application)
    overridden = {deployment["name"] for deployment in application.get("deployments", ())}
    assert overridden <= {built._bound_deployment.name}


@pytest.mark.parametrize("place", CONFIGS)
def test_the_gateway_and_the_controller_are_there_once(place: str) -> None:
    routes = {one["name"]: one["route_prefix"] for one in CONFIGS[place]["applications"]}
    assert routes["gateway"] == "/"
    assert routes["controller"] is None


@pytest.mark.parametrize("place", CONFIGS)
def test_the_default_variant_is_declared(place: str) -> None:
    """A gateway does not start without it, and nothing can be added at run time before a gateway is there."""
    default = Settings.model_fields["default_variant"].default
    assert application_of(default) in {one["name"] for one in CONFIGS[place]["applications"]}


def test_variants_are_where_gateways_ask_for_them() -> None:
    variants = [one for _, one in APPLICATIONS if one["import_path"] == "serving.app:variant"]
    assert {one["args"]["name"] for one in variants} == {"bf16", "fp8"}
    for one in variants:
        assert one["name"] == application_of(one["args"]["name"])
        assert one["route_prefix"] == f"/variants/{one['args']['name']}"


@pytest.mark.parametrize("place", CONFIGS)
def test_the_proxy_listens_where_gateways_reach_it(place: str) -> None:
    config = CONFIGS[place]
    default = Settings.model_fields["port"].default
    assert config["http_options"]["port"] == default
    gateway = next(one for one in config["applications"] if one["name"] == "gateway")
    assert gateway["args"].get("port", default) == default


def test_a_variant_that_is_asked_for_gpus_gets_them() -> None:
    for one in CONFIGS["kubernetes/rayservice.yaml"]["applications"]:
        for deployment in one["deployments"]:
            wanted = one.get("args", {}).get("variant_gpus", 0)
            assert deployment["ray_actor_options"].get("num_gpus", 0) == wanted


@pytest.mark.parametrize("missing", ["name", "checkpoint"])
def test_a_variant_without_an_argument_is_refused_by_its_name(missing: str, tmp_path: Path) -> None:
    args = {"name": "bf16", "checkpoint": "/checkpoints/bf16", "home": str(tmp_path)}
    del args[missing]
    with pytest.raises(ConfigurationError, match=f"args: {missing}"):
        app.variant(args)


def test_a_variant_whose_name_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="name"):
        app.variant({"name": "../x", "checkpoint": "/checkpoints/x", "home": str(tmp_path)})


def test_a_variant_keeps_its_settings(tmp_path: Path) -> None:
    args = {"name": "fp8", "checkpoint": "/c", "home": str(tmp_path), "variant_replicas": 3, "variant_gpus": 0.5}
    deployment = app.variant(args)._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.ray_actor_options["num_gpus"] == 0.5
