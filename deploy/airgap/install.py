"""Rejoins, verifies and installs a bundle that `bundle.py` made. Needs Python and pip, no index and no network.

python install.py                      # from inside the bundle; installs into the Python that runs it
python install.py --target DIR         # into a folder, to be named in PYTHONPATH; the host stays as it is
python install.py --wheels-only DIR    # only rejoin and verify
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = "crossfade-airgap/1"
_BLOCK = 2**20


class DamagedBundleError(Exception):
    """What is missing from a bundle or is not what was packed, by the file's name."""


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The bundle's table of contents. Raises DamagedBundleError."""
    path = bundle / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"]
        if known != FORMAT:
            raise DamagedBundleError(f"manifest.json: format: expected {FORMAT!r}, got {known!r}")
        for wheel in manifest["wheels"]:
            for entry in (wheel, *wheel["parts"]):
                _checked_name(entry["name"])
                int(entry["bytes"]), str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedBundleError(f"manifest.json: cannot be used: {error!r}") from error
    return manifest


def rejoin(bundle: Path, wheels: Path) -> list[Path]:
    """Every wheel, whole and verified, in the folder `wheels`. Raises DamagedBundleError naming all that is wrong."""
    manifest = read_manifest(bundle)
    parts = [part for wheel in manifest["wheels"] for part in wheel["parts"]]
    wrong = [reason for part in parts if (reason := _difference(bundle / "parts" / part["name"], part))]
    if wrong:
        raise DamagedBundleError("; ".join(wrong))
    wheels.mkdir(parents=True, exist_ok=True)
    joined = []
    for wheel in manifest["wheels"]:
        path = wheels / wheel["name"]
        _join([bundle / "parts" / part["name"] for part in wheel["parts"]], path)
        if reason := _difference(path, wheel):
            raise DamagedBundleError(reason)
        joined.append(path)
    return joined


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Install Crossfade from a bundle, without an index.")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parent, help="where manifest.json is")
    parser.add_argument(
        "--wheels-only", type=Path, metavar="DIR", help="put the verified wheels there, install nothing"
    )
    parser.add_argument("--target", type=Path, metavar="DIR", help="install there instead of into this Python")
    parser.add_argument("--pip", action="append", default=[], metavar="OPTION", help="passed to pip install as it is")
    asked = parser.parse_args(arguments)
    try:
        manifest = read_manifest(asked.bundle)
        if asked.wheels_only is not None:
            print(f"{len(rejoin(asked.bundle, asked.wheels_only))} wheels verified in {asked.wheels_only}")
            return 0
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        if manifest["python"] != running:
            raise DamagedBundleError(f"manifest.json: python: made for {manifest['python']}, this is {running}")
        with tempfile.TemporaryDirectory() as scratch:
            wheels = Path(scratch)
            joined = rejoin(asked.bundle, wheels)
            options = ["--no-index", f"--find-links={wheels}", *asked.pip]
            if asked.target is not None:
                options.append(f"--target={asked.target}")
            if manifest.get("complete", True):
                wanted = [manifest["requirement"]]
            else:  # the rest is there at versions that the resolver would not choose
                options.append("--no-deps")
                wanted = [str(path) for path in joined]
            command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, *wanted]
            return subprocess.run(command, check=False).returncode
    except DamagedBundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _difference(path: Path, entry: Mapping[str, Any]) -> str | None:
    """What sets a file apart from its entry in the manifest; None when nothing does."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != entry["bytes"]:
                return f"{path.name}: {size} bytes, expected {entry['bytes']}"
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{path.name}: SHA-256 differs"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None


def _join(parts: Sequence[Path], whole: Path) -> None:
    with whole.open("wb") as target:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    target.write(block)


def _checked_name(name: str) -> None:
    """Raises ValueError for a name that leads out of the bundle."""
    if name != Path(name).name or name in {"", ".", ".."} or "\\" in name:
        raise ValueError(f"name: {name!r} is not a plain file name")


if __name__ == "__main__":
    sys.exit(main())
