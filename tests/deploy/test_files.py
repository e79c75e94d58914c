"""Every file of deploy/ can be read by its reader, and names nothing that does not exist."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import ray
import yaml

from serving.settings import Settings
from tests.deploy.documents import DEPLOY, NAME, ROOT, YAML_FILES, documents, text_document

SETTINGS = {f"CROSSFADE_{field.upper()}" for field in Settings.model_fields}
RAY_VARIABLES_IN_C = {"RAY_worker_niceness", "RAY_USAGE_STATS_ENABLED"}
"""The first one is of Ray's C++ configuration, the second one of its usage report."""


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_yaml_parses_without_a_key_twice(path: Path) -> None:
    assert all(document for document in documents(path))


def test_a_key_that_is_there_twice_is_seen() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="twice"):
        text_document("{a: 1, b: 2, a: 3}")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.json")), ids=lambda path: path.name)
def test_json_parses(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8"))


def _mentions() -> dict[str, set[str]]:
    """Environment variables by the file of deploy/ that names them."""
    texts = {
        path.relative_to(DEPLOY).as_posix(): path.read_text(encoding="utf-8")
        for path in DEPLOY.rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".json"}
    }
    return {name: set(NAME.findall(text)) for name, text in texts.items()}


def test_every_environment_variable_is_a_setting() -> None:
    named = {(name, found) for name, all_found in _mentions().items() for found in all_found}
    ours = {(name, found) for name, found in named if found.startswith("CROSSFADE_")}
    assert len(ours) > 15
    assert {(name, found) for name, found in ours if found not in SETTINGS} == set()


def test_every_variable_of_ray_is_one_that_ray_reads() -> None:
    source = Path(inspect.getfile(ray)).parent / "serve" / "_private" / "constants.py"
    known = set(re.findall(r"RAY_SERVE_\w+", source.read_text(encoding="utf-8"))) | RAY_VARIABLES_IN_C
    named = {found for all_found in _mentions().values() for found in all_found if found.startswith("RAY_")}
    assert "RAY_SERVE_ENABLE_HA_PROXY" in named
    assert named - known == set()


def test_every_path_in_a_text_exists() -> None:
    """deploy/… and serving/… in comments and in the README."""
    for path in [*YAML_FILES, DEPLOY / "README.md", DEPLOY / "docker" / "Dockerfile", DEPLOY / "example.env"]:
        text = path.read_text(encoding="utf-8")
        for found in re.findall(r"(?<![\w/.])((?:deploy|serving|tests)/[\w./-]*\w)", text):
            made_by_the_reader = found == "deploy/.env"
            assert made_by_the_reader or (ROOT / found).exists(), f"{path.name}: {found}"


def test_no_secret_is_written_down() -> None:
    """Every password is a reference, a placeholder or empty."""
    for line in (DEPLOY / "example.env").read_text().splitlines():
        assert not re.match(r"\w*PASSWORD=.+", line), line
    for path in YAML_FILES:
        text = path.read_text(encoding="utf-8")
        for found in re.findall(r"""(?m)^ *\w*PASSWORD: *"?([^\s"]+)|"token": *"([^"]*)"|://\w*:([^@\s]+)@""", text):
            value = "".join(found)
            assert re.match(r"\$\{\w+:\?", value) or value in {"PASSWORD", "TOKEN"}, f"{path.name}: {value}"
