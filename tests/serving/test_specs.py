"""The specifications that come along: all of them are found, and a wrong name is answered with the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment.spec import load_spec
from serving import specs
from serving.errors import ConfigurationError
from serving.specs import spec_text


@pytest.mark.parametrize("name", ["demo", "demo-rollback", "fp8-canary"])
def test_a_specification_is_found_by_its_name(name: str) -> None:
    assert load_spec(spec_text(name)).control.arm == "bf16"


@pytest.mark.parametrize("name", ["nothing", "", "../demo.yaml", "demo.yaml"])
def test_an_unknown_name_is_answered_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigurationError, match="demo-rollback, fp8-canary"):
        spec_text(name)


def test_an_installation_without_specifications_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(specs, "_PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ConfigurationError, match="deploy/experiments"):
        spec_text("demo")


def test_an_installed_wheel_has_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("key: ü", encoding="utf-8")
    monkeypatch.setattr(specs, "_PLACES", (tmp_path / "no checkout", tmp_path))
    assert spec_text("mine") == "key: ü"
