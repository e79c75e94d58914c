"""The wheel is the whole product: what the service reads beside its code is in it, and is found there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return next(folder.glob("crossfade-*.whl"))


def test_the_wheel_holds_what_is_not_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    beside_code = [
        path.relative_to(ROOT).as_posix()
        for pattern in (
            *("serving/templates/*", "serving/static/*", "experiment/store/migrations/*.mako", "*/py.typed"),
            *("model/engine/*.cu", "model/engine/*.cuh", "quant/kernels/*.cu", "quant/kernels/*.cuh"),
        )
        for path in ROOT.glob(pattern)
        if not path.parent.name.startswith(".")
    ]
    data = next(name.partition("/")[0] for name in inside if ".data/" in name)
    sources = (ROOT / "deploy" / "experiments").glob("*.yaml")
    specs = [f"{data}/data/share/crossfade/experiments/{path.name}" for path in sources]
    assert len(beside_code) > 16
    assert len(specs) > 2
    assert inside >= {*beside_code, *specs}


def test_the_wheel_brings_the_command_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        scripts = archive.read(next(name for name in inside if name.endswith("entry_points.txt"))).decode()
    assert "crossfade = serving.cli:main" in scripts
    rooms = {name.partition("/")[0] for name in inside if ".dist-info" not in name and ".data/" not in name}
    assert rooms == {"serving", "experiment", "stats", "model", "quant"}


def test_an_installed_wheel_finds_its_specifications(wheel: Path, tmp_path: Path) -> None:
    """In a virtual environment of its own, without the checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True)
    ask = "from serving.specs import spec_text; print(spec_text('demo'))"
    found = subprocess.run([python, "-I", "-c", ask], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.rstrip() == (ROOT / "deploy" / "experiments" / "demo.yaml").read_text().rstrip()


def test_the_command_of_this_environment_runs_from_anywhere(tmp_path: Path) -> None:
    """An editable install can hide a package behind a folder of its name; from the checkout nobody would notice."""
    command = Path(sys.executable).with_name("crossfade")
    found = subprocess.run([command, "--version"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.strip() == version("crossfade")


def test_a_checkout_finds_the_same() -> None:
    ask = "from serving.specs import spec_text; print(spec_text('fp8-canary'))"
    found = subprocess.run([sys.executable, "-c", ask], check=True, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.rstrip() == (ROOT / "deploy" / "experiments" / "fp8-canary.yaml").read_text().rstrip()
