"""A slimmed wheel still is one: pip installs it, its RECORD is right, and only what was named is gone."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.airgap.slim import slimmed

INFO = "crossfade_airgap_slim-1.0.dist-info"
CONTENT = {
    "crossfade_airgap_slim/__init__.py": b"value = 1\n",
    "crossfade_airgap_slim/jars/big.jar": bytes(range(256)) * 40,
    "crossfade_airgap_slim/jars_that_stay/a,b.py": b"",
    f"{INFO}/METADATA": b"Metadata-Version: 2.1\nName: crossfade-airgap-slim\nVersion: 1.0\n",
    f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/RECORD": b"out of date\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "crossfade_airgap_slim-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in CONTENT.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if name.endswith("__init__.py") else 0o644) << 16
            archive.writestr(entry, content)
    return path


def test_only_the_named_folder_is_gone_and_the_record_is_right(wheel: Path) -> None:
    slimmed(wheel, ["crossfade_airgap_slim/jars"])
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == CONTENT.keys() - {"crossfade_airgap_slim/jars/big.jar"}
        rows = list(csv.reader(io.StringIO(archive.read(f"{INFO}/RECORD").decode())))
        recorded = {name: (digest, size) for name, digest, size in rows}
        assert recorded.keys() == set(archive.namelist())
        for name in recorded.keys() - {f"{INFO}/RECORD"}:
            content = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert recorded[name] == (f"sha256={digest}", str(len(content)))
        assert archive.getinfo("crossfade_airgap_slim/__init__.py").external_attr >> 16 == 0o755


def test_the_same_wheel_gives_the_same_bytes(wheel: Path) -> None:
    before = wheel.read_bytes()
    slimmed(wheel, [])
    once = wheel.read_bytes()
    wheel.write_bytes(before)
    slimmed(wheel, [])
    assert wheel.read_bytes() == once


def test_pip_installs_it(wheel: Path, tmp_path: Path) -> None:
    slimmed(wheel, ["crossfade_airgap_slim/jars"])
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", f"--target={tmp_path / 'site'}"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    assert (tmp_path / "site" / "crossfade_airgap_slim" / "__init__.py").is_file()


def test_an_executable_is_still_one_without_its_symbols(wheel: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).resolve().read_bytes()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("crossfade_airgap_slim/program", program)
    slimmed(wheel, [])
    with zipfile.ZipFile(wheel) as archive:
        stripped = archive.read("crossfade_airgap_slim/program")
    assert stripped.startswith(b"\x7fELF")
    assert len(stripped) <= len(program)


def test_a_folder_that_is_not_there_is_named(wheel: Path) -> None:
    with pytest.raises(ValueError, match="has no folder 'ray/jars'"):
        slimmed(wheel, ["ray/jars"])
