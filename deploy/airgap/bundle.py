"""Packs Crossfade and everything it needs into files that fit through a small door, for a host without an index.

    python deploy/airgap/bundle.py BUNDLE --python 3.12 --platform manylinux_2_28_x86_64 --part-mib 60 --without torch
    python deploy/airgap/bundle.py BUNDLE --profile deploy/airgap/gpu-host.toml

Needs nothing but Python and pip. BUNDLE then holds `manifest.json`, `install.py` and `parts/`. Run it with the
target's Python version: pip judges a requirement's markers by the interpreter that it runs in. A profile says what a
kind of host has already and what serving does not load; its bundle is a fifth of the whole and complete on such a host
only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slim import slimmed

ROOT = Path(__file__).resolve().parent.parent.parent
FORMAT = "crossfade-airgap/1"
_MIB = 2**20
_OLDEST_GLIBC = 5
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


class BundleError(Exception):
    """What cannot be bundled, and why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the bundle is for.

    without: packages that stay behind. also: requirements that travel without their own. drop: folders taken out of a
    package's wheel, by its name. complete: whether pip may be asked there if everything is satisfied.
    """

    python: str
    platform: str
    without: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    drop: Mapping[str, Sequence[str]] = field(default_factory=dict)
    complete: bool = True


def target_of(profile: Path) -> Target:
    """The target that a profile describes. Raises BundleError naming what is wrong with it."""
    try:
        found = tomllib.loads(profile.read_text(encoding="utf-8"))
        without = (*found["has"], *found["spare"])
        return Target(found["python"], found["platform"], without, tuple(found["also"]), found["drop"], complete=False)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise BundleError(f"{profile}: cannot be used: {error!r}") from error


def platform_tags(platform: str) -> list[str]:
    """The platform and every older manylinux of the same architecture, newest first: wheels for those run there, too.

    Raises BundleError for anything but `manylinux_2_<minor>_<architecture>`.
    """
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    if found is None:
        raise BundleError(f"--platform: expected manylinux_2_<minor>_<architecture>, got {platform!r}")
    newest, architecture = int(found[1]), found[2]
    tags = []
    for minor in range(newest, _OLDEST_GLIBC - 1, -1):
        tags.append(f"manylinux_2_{minor}_{architecture}")
        if minor in _LEGACY:
            tags.append(f"{_LEGACY[minor]}_{architecture}")
    return tags


def pinned_version(constraints: Path, name: str) -> str:
    """What a constraints file pins a package to. Raises BundleError when it does not."""
    wanted = _normalised(name)
    for line in constraints.read_text(encoding="utf-8").splitlines():
        package, equals, version = line.partition("==")
        if equals and _normalised(package) == wanted:
            return version.strip()
    raise BundleError(f"--without: {constraints.name} pins no package called {name!r}")


def stand_in(folder: Path, name: str, version: str) -> Path:
    """An empty wheel that pip prefers to the real one, for a local version is newer; so nothing below it is fetched."""
    package, stand_in_version = _normalised(name).replace("-", "_"), f"{version.partition('+')[0]}+none"
    info = f"{package}-{stand_in_version}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: crossfade\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{package}-{stand_in_version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {stand_in_version}\n")
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    return path


def split(source: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Copy a file into parts of at most `part_bytes` bytes, in order, by blocks; a single part keeps the name.

    Raises BundleError when part_bytes is not positive.
    """
    if part_bytes < 1:
        raise BundleError(f"--part-mib: a part needs at least one byte, got {part_bytes}")
    if source.stat().st_size <= part_bytes:
        return [Path(shutil.copyfile(source, folder / source.name))]
    parts: list[Path] = []
    with source.open("rb") as file:
        while head := file.read(min(part_bytes, _MIB)):
            part = folder / f"{source.name}.{len(parts):03d}"
            with part.open("wb") as target:
                target.writelines(_rest(file, head, part_bytes))
            parts.append(part)
    return parts


def pack(wheels: Sequence[Path], bundle: Path, part_bytes: int, about: dict[str, Any]) -> Path:
    """Write `parts/`, `install.py` and `manifest.json`; returns the manifest. `about` goes into it as it is.

    Raises BundleError when the bundle is there already, for leftovers would travel along.
    """
    folder = bundle / "parts"
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise BundleError(f"{bundle}: is a bundle already; remove it or name another folder") from error
    entries = []
    for wheel in sorted(wheels):
        parts = [describe(part) for part in split(wheel, folder, part_bytes)]
        entries.append(describe(wheel) | {"parts": parts})
    shutil.copyfile(Path(__file__).with_name("install.py"), bundle / "install.py")
    manifest = bundle / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT} | about | {"wheels": entries}, indent=2) + "\n", encoding="utf-8")
    return manifest


def describe(path: Path) -> dict[str, Any]:
    """Name, size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def download(wheels: Path, target: Target, pip_options: Sequence[str]) -> str:
    """Fill `wheels` with Crossfade and what it needs, at the tested versions. Returns the requirement to install.

    Raises BundleError when pip does not manage.
    """
    constraints = ROOT / "constraints.txt"
    platforms = [f"--platform={tag}" for tag in platform_tags(target.platform)]
    there = [f"--python-version={target.python}", "--implementation=cp", "--only-binary=:all:", *platforms]
    _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
    own = next(wheels.glob("crossfade-*.whl"))
    with tempfile.TemporaryDirectory() as scratch:
        left_out = [stand_in(Path(scratch), name, pinned_version(constraints, name)) for name in target.without]
        left_out.append(stand_in(Path(scratch), "pip", "1000"))  # whoever installs the bundle has it
        places = [f"--find-links={scratch}", f"--constraint={constraints}", f"--dest={wheels}"]
        _pip("download", *there, *places, *pip_options, str(own))
        for path in left_out:
            (wheels / path.name).unlink(missing_ok=True)
    if target.also:
        _pip("download", "--no-deps", *there, f"--dest={wheels}", *pip_options, *target.also)
    for name, folders in target.drop.items():
        _slim(wheels, name, folders)
    return f"crossfade=={own.name.split('-')[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Pack Crossfade for a host without a package index.")
    parser.add_argument("bundle", type=Path, help="folder to make")
    parser.add_argument("--python", default="3.12", help="the target's version (default: 3.12)")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="the target's (default: %(default)s)")
    parser.add_argument("--part-mib", type=float, default=60, help="largest file in MiB (default: 60)")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="the target has it: torch, say")
    parser.add_argument("--profile", type=Path, help="a kind of host, instead of --python, --platform and --without")
    parser.add_argument("--pip", action="append", default=[], metavar="OPTION", help="passed to pip download as it is")
    asked = parser.parse_args(arguments)
    try:
        target = target_of(asked.profile) if asked.profile else Target(asked.python, asked.platform, (*asked.without,))
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        if target.python != running:
            print(f"note: this is Python {running}; markers are judged by it, not by {target.python}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            wheels = Path(scratch)
            requirement = download(wheels, target, asked.pip)
            about = {
                "python": target.python,
                "platform": target.platform,
                "requirement": requirement,
                "without": list(target.without),
                "complete": target.complete,
            }
            manifest = pack(list(wheels.glob("*.whl")), asked.bundle, int(asked.part_mib * _MIB), about)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parts = list((asked.bundle / "parts").iterdir())
    size_mib = sum(path.stat().st_size for path in parts) / _MIB
    print(f"{manifest}: {requirement}, {len(parts)} files, {size_mib:.1f} MiB")
    return 0


def _slim(wheels: Path, name: str, folders: Sequence[str]) -> None:
    """Take folders out of the wheel of a package. Raises BundleError when there is no such wheel or folder."""
    found = [path for path in wheels.glob("*.whl") if _normalised(path.name.split("-")[0]) == _normalised(name)]
    if not found:
        raise BundleError(f"drop: no wheel of a package called {name!r}")
    try:
        slimmed(found[0], folders)
    except ValueError as error:
        raise BundleError(f"drop: {error}") from error


def _rest(file: Any, head: bytes, limit: int) -> Iterator[bytes]:
    """`head` and what follows it in the file, `limit` bytes together."""
    yield head
    left = limit - len(head)
    while left > 0 and (block := file.read(min(left, _MIB))):
        yield block
        left -= len(block)


def _normalised(name: str) -> str:
    """Package names that differ in case and punctuation only are the same (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise BundleError(f"pip {arguments[0]} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
