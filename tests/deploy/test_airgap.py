"""A bundle arrives whole or is refused: split, rejoin, digests, and an installation without an index."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.airgap.bundle import BundleError, main, pack, pinned_version, platform_tags, split, stand_in, target_of
from deploy.airgap.install import DamagedBundleError, read_manifest, rejoin
from deploy.airgap.install import main as install

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "requirement": "nothing"}
CONTENT = {"one.whl": bytes(range(256)) * 4, "two.whl": b"small", "empty.whl": b""}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three files, of which the first one is in parts of 100 bytes."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, content in CONTENT.items():
        (wheels / name).write_bytes(content)
    pack(list(wheels.iterdir()), tmp_path / "bundle", 100, ABOUT)
    return tmp_path / "bundle"


@settings(max_examples=30)
@given(content=st.binary(max_size=400), part_bytes=st.integers(1, 450))
def test_parts_are_small_enough_and_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, part_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    source = folder / "x.whl"
    source.write_bytes(content)
    (folder / "out").mkdir()
    parts = split(source, folder / "out", part_bytes)
    assert b"".join(part.read_bytes() for part in parts) == content
    assert all(part.stat().st_size <= part_bytes for part in parts)
    assert len(parts) == max(1, -(-len(content) // part_bytes))


def test_parts_beyond_one_block_of_memory(tmp_path: Path) -> None:
    source = tmp_path / "x.whl"
    source.write_bytes(bytes(range(251)) * 20_000)  # 5 MB, no period of a block's
    (tmp_path / "out").mkdir()
    parts = split(source, tmp_path / "out", 2_100_000)
    assert [part.stat().st_size for part in parts] == [2_100_000, 2_100_000, 820_000]
    assert b"".join(part.read_bytes() for part in parts) == source.read_bytes()


def test_a_bundle_comes_back_as_it_was(bundle: Path, tmp_path: Path) -> None:
    joined = rejoin(bundle, tmp_path / "there")
    assert {path.name: path.read_bytes() for path in joined} == CONTENT
    assert len(list((bundle / "parts").glob("one.whl.*"))) == 11
    assert read_manifest(bundle)["python"] == ABOUT["python"]


def test_a_flipped_bit_is_named(bundle: Path, tmp_path: Path) -> None:
    part = bundle / "parts" / "one.whl.007"
    content = bytearray(part.read_bytes())
    content[3] ^= 1
    part.write_bytes(content)
    with pytest.raises(DamagedBundleError, match=r"^one\.whl\.007: SHA-256 differs$"):
        rejoin(bundle, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_everything_that_is_wrong_is_named_at_once(bundle: Path, tmp_path: Path) -> None:
    (bundle / "parts" / "one.whl.002").unlink()
    (bundle / "parts" / "two.whl").write_bytes(b"smal")
    with pytest.raises(DamagedBundleError, match=r"one\.whl\.002: No such file.*; two\.whl: 4 bytes, expected 5"):
        rejoin(bundle, tmp_path / "there")


def test_parts_in_the_wrong_order_are_no_wheel(bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    wheel = next(one for one in manifest["wheels"] if one["name"] == "one.whl")
    wheel["parts"][0], wheel["parts"][1] = wheel["parts"][1], wheel["parts"][0]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedBundleError, match=r"^one\.whl: SHA-256 differs$"):
        rejoin(bundle, tmp_path / "there")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format", "crossfade-airgap/2", "format: expected"),
        ("wheels", None, "cannot be used"),
        ("wheels", [{"name": "../x", "bytes": 1, "sha256": "", "parts": []}], "not a plain file name"),
        ("wheels", [{"name": "x", "bytes": 1, "parts": []}], "sha256"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(bundle: Path, field: str, value: object, reason: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(DamagedBundleError, match=reason):
        read_manifest(bundle)


def test_nothing_is_packed_over_another_bundle(bundle: Path) -> None:
    with pytest.raises(BundleError, match="is a bundle already"):
        pack([], bundle, 100, ABOUT)


def test_another_python_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"python": "3.1"}))
    assert install(["--bundle", str(bundle)]) == 1
    assert "python: made for 3.1" in capsys.readouterr().err


def test_platform_tags_reach_back_to_the_oldest() -> None:
    tags = platform_tags("manylinux_2_28_x86_64")
    assert tags[0] == "manylinux_2_28_x86_64"
    assert {"manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert "manylinux_2_29_x86_64" not in tags


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"--platform: .*'win32'"):
        platform_tags("win32")
    with pytest.raises(BundleError, match="--part-mib"):
        split(Path(__file__), tmp_path, 0)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("aiohttp==3.1\nTyping_Extensions==4.0\n")
    assert pinned_version(constraints, "typing-extensions") == "4.0"
    with pytest.raises(BundleError, match=r"--without: .*'torch'"):
        pinned_version(constraints, "torch")


def test_the_installer_installs_without_an_index(tmp_path: Path) -> None:
    """With pip itself, in a process of its own, from a bundle that was split."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = stand_in(wheels, "Crossfade_Airgap.test", "1.5")
    about = ABOUT | {"requirement": "crossfade-airgap-test==1.5"}
    pack([wheel], tmp_path / "bundle", 150, about)
    target = tmp_path / "site"
    command = [sys.executable, str(tmp_path / "bundle" / "install.py"), f"--pip=--target={target}", "--pip=--quiet"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert len(list((tmp_path / "bundle" / "parts").iterdir())) > 1
    assert (target / "crossfade_airgap_test-1.5+none.dist-info" / "METADATA").is_file()


def test_an_incomplete_bundle_asks_no_resolver(tmp_path: Path) -> None:
    """What it needs is on the host, at versions that the bundle does not know."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    made = [stand_in(wheels, name, "1.5") for name in ("crossfade_airgap_one", "crossfade_airgap_two")]
    pack(made, tmp_path / "bundle", 10_000, ABOUT | {"requirement": "no-such-package==9", "complete": False})
    target = tmp_path / "site"
    assert install(["--bundle", str(tmp_path / "bundle"), "--target", str(target), "--pip=--quiet"]) == 0
    assert len(list(target.glob("crossfade_airgap_*.dist-info"))) == 2


def test_the_profile_of_a_gpu_host_names_packages_that_are_pinned() -> None:
    path = ROOT / "deploy" / "airgap" / "gpu-host.toml"
    target = target_of(path)
    assert not target.complete
    for name in target.without:
        assert pinned_version(ROOT / "constraints.txt", name)
    found = tomllib.loads(path.read_text())
    assert not set(found["has"]) & set(found["spare"])
    assert all("==" in one for one in target.also)


@pytest.mark.parametrize("text", ["python = 3.12", 'python = "3.12"', "]", 'has = "torch"'])
def test_a_profile_that_lacks_something_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.toml").write_text(text)
    with pytest.raises(BundleError, match=r"host\.toml: cannot be used"):
        target_of(tmp_path / "host.toml")


def test_a_bad_platform_ends_before_pip_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "bundle"), "--platform", "linux"]) == 1
    assert "--platform" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
