"""The compose file and the Dockerfile: nothing is open to the world, and what they name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from serving.auth import Scope, load_tokens
from serving.cli import app
from serving.routes.health import router
from serving.settings import Settings
from tests.deploy.documents import DEPLOY, ROOT, document

COMPOSE = document("compose.yaml")
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
PORT = Settings.model_fields["port"].default


def _instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def test_ports_are_published_on_this_host_only() -> None:
    published = {port for service in SERVICES.values() for port in service.get("ports", ())}
    assert len(published) == 5
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


def test_the_service_answers_on_the_port_that_settings_say() -> None:
    service = SERVICES["crossfade"]
    assert service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert service["environment"]["CROSSFADE_PORT"] == str(PORT)
    assert f"CROSSFADE_PORT={PORT}" in DOCKERFILE
    assert any(name == "EXPOSE" and str(PORT) in ports.split() for name, ports in _instructions())


def test_the_values_of_the_environment_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the container would see them with the defaults of example.env."""
    given = SERVICES["crossfade"]["environment"]
    for name, value in given.items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
    settings = Settings()
    assert settings.host == "0.0.0.0"  # noqa: S104 - inside of its container
    assert settings.database_url is not None
    assert "@postgres:5432" in settings.database_url
    assert settings.gateway_replicas == 1
    assert settings.variant_gpus == 0


def test_every_variable_of_the_compose_file_is_in_the_example() -> None:
    text = "".join((DEPLOY / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml"))
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    offered = set(re.findall(r"^(\w+)=", (DEPLOY / "example.env").read_text(), re.MULTILINE))
    assert used == offered


def test_secrets_have_no_default() -> None:
    for text in re.findall(r"\$\{\w*PASSWORD[^}]*\}", (DEPLOY / "compose.yaml").read_text()):
        assert ":?" in text


def test_volumes_and_dependencies_are_there() -> None:
    named = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = re.sub(r"\$\{[^}]*\}", "/checkpoints", volume).partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("/"):
                named.add(source)
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert named == set(COMPOSE["volumes"])


def test_the_spool_and_the_databases_outlive_their_containers() -> None:
    for name, folder in {
        "crossfade": "/var/lib/crossfade",
        "postgres": "/var/lib/postgresql/data",
        "valkey": "/data",
    }.items():
        assert any(volume.split(":")[1] == folder for volume in SERVICES[name]["volumes"])
    assert "CROSSFADE_HOME=/var/lib/crossfade" in DOCKERFILE


def test_every_image_has_a_version() -> None:
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert len(images) == 4
    for image in images:
        tag = image.partition(":")[2]
        assert tag[:2].strip("v")[0].isdigit(), image


def test_what_the_dockerfile_copies_exists_and_reaches_the_builder() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for name, rest in _instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert "constraints.txt" in copied
    assert copied == allowed
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = [rest for name, rest in _instructions() if name == "USER"]
    assert users == ["10001:10001"]
    assert "--uid 10001" in DOCKERFILE


def test_both_accelerators_have_a_stage() -> None:
    stages = {rest.split()[-1]: rest.split()[0] for name, rest in _instructions() if name == "FROM"}
    assert stages["service"] == "${ACCELERATOR}"
    assert stages["cpu"] == stages["gpu"] == "base"
    assert ("ARG", "ACCELERATOR=cpu") in _instructions()


def test_health_is_asked_where_the_service_tells_it() -> None:
    (asked,) = [rest for name, rest in _instructions() if name == "HEALTHCHECK"]
    path = re.search(r"\$\{CROSSFADE_PORT\}(/\w+)", asked)
    assert path is not None
    assert path[1] in {route.path for route in router.routes}  # type: ignore[attr-defined]


def test_pip_installs_the_tested_versions() -> None:
    installs = re.findall(r"pip install [^\n]*", DOCKERFILE)
    assert len(installs) == 2
    assert all("-c /constraints.txt" in line for line in installs)


def test_commands_and_their_options_exist() -> None:
    """`crossfade …` in Dockerfile, compose file and migration job."""
    root = get_command(app)
    for words in (["up", "--variant"], ["token", "list"], ["db", "upgrade"], ["experiment", "create", "--file"]):
        command: Any = root
        for word in words:
            if word.startswith("--"):
                assert any(word in parameter.opts for parameter in command.params), words
            else:
                command = command.commands[word]


def test_prometheus_gets_the_token_of_the_right_scope(tmp_path: Path) -> None:
    """The shell line of the compose file, run over what `crossfade token list` really prints."""
    listing = subprocess.run(
        [sys.executable, "-c", "from serving.cli import main; main()", "token", "list", "--home", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    line = SERVICES["metrics-token"]["command"][2].replace("$$", "$")
    program = re.search(r"awk '([^']+)'", line)
    assert program is not None
    found = subprocess.run(["awk", program[1]], input=listing, check=True, capture_output=True, text=True).stdout
    assert found == next(
        token for token, scope in load_tokens(tmp_path / "tokens.json").values() if scope is Scope.READ
    )
    for name in ("prometheus", "kubernetes"):
        jobs = {job["job_name"]: job for job in document(f"prometheus/{name}.yml")["scrape_configs"]}
        assert jobs["crossfade"]["authorization"]["credentials_file"] == line.rpartition("> ")[2]
