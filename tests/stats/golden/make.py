"""Make the golden cases anew: each peer computes them in an environment of its own, from the same users.

    python tests/stats/golden/make.py --venvs .golden-venvs

Writes data.json and one <peer>.json for each peer beside this file. Peers come from PyPI at the versions below.
confseq 0.0.11 has no wheel and pins a pybind11 that Python 3.11 refuses: its two C++ files are compiled here against
a current pybind11 and the Boost headers of the wheel cmeel-boost, which needs g++.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = {
    "gbstats": ["gbstats==0.8.0"],
    "tea_tasting": ["tea-tasting==1.14.0", "statsmodels==0.15.0", "scipy==1.17.1"],
    "savvi": ["savvi==0.3.1", "matplotlib==3.11.2"],
    "confseq": ["numpy==2.4.6", "pybind11==3.1.0", "cmeel-boost==1.90.0"],
}
CONFSEQ = "0.0.11"
INDEX = "https://pypi.org/simple/confseq/"


def main() -> int:
    options = _options()
    (HERE / "data.json").write_text(json.dumps(users(random.Random(20_240)), indent=None) + "\n")
    for peer, packages in PEERS.items():
        python = _environment(options.venvs / peer, packages)
        extra = _confseq(python, options.venvs / peer) if peer == "confseq" else ""
        environment = {**os.environ, "PYTHONPATH": extra}
        done = subprocess.run(
            [python, HERE / f"{peer}_cases.py"], env=environment, check=True, capture_output=True, text=True
        )
        cases = json.loads(done.stdout)
        (HERE / f"{peer}.json").write_text(json.dumps(cases, indent=1) + "\n")
        print(f"{peer}: {len(cases)} cases", file=sys.stderr)
    return 0


def users(rng: random.Random) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Two experiments of two arms, one value a user: clicks with impressions, spend; each with its pre-period."""
    experiments = {"clicks": _clicks, "spend": _spend}
    return {
        name: {"treatment": draw(rng, 73, 1.1), "control": draw(rng, 91, 1.0)} for name, draw in experiments.items()
    }


def _clicks(rng: random.Random, n: int, lift: float) -> dict[str, list[float]]:
    arm: dict[str, list[float]] = {"x": [], "y": [], "pre_x": [], "pre_y": []}
    for _ in range(n):
        taste = rng.betavariate(2, 18)
        for prefix, rate in (("", taste * lift), ("pre_", taste)):
            impressions = 1 + int(rng.lognormvariate(2.5, 0.8))
            arm[f"{prefix}x"].append(sum(rng.random() < rate for _ in range(impressions)))
            arm[f"{prefix}y"].append(impressions)
    return arm


def _spend(rng: random.Random, n: int, lift: float) -> dict[str, list[float]]:
    arm: dict[str, list[float]] = {"x": [], "pre_x": []}
    for _ in range(n):
        level = rng.gauss(1, 0.8)
        arm["x"].append(round(lift * rng.lognormvariate(level, 0.5), 2))
        arm["pre_x"].append(round(rng.lognormvariate(level, 0.5), 2))
    return arm


def _environment(at: Path, packages: list[str]) -> Path:
    python = at / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", at], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def _confseq(python: Path, at: Path) -> str:
    """Compile confseq's own sources; returns the folder to import them from."""
    built = at / "confseq-build"
    ask = "import sysconfig as s, pybind11; print(s.get_config_var('EXT_SUFFIX'), s.get_path('include'),"
    ask += " pybind11.get_include(), s.get_path('purelib') + '/cmeel.prefix/include')"
    said = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout
    suffix, *include = said.split()
    if not built.exists():
        with urllib.request.urlopen(INDEX) as page:
            link = re.search(rf'href="([^"]*confseq-{re.escape(CONFSEQ)}\.tar\.gz)', page.read().decode())
        assert link is not None, f"{INDEX} lists no confseq {CONFSEQ}"
        built.mkdir()
        stream = urllib.request.urlopen(urllib.parse.urljoin(INDEX, link[1]))  # noqa: S310 # INDEX is https
        with stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
            archive.extractall(built, filter="data")
    for name in ("boundaries", "quantiles"):
        source = next(built.glob(f"**/src/confseq/{name}.cpp"))
        command = ["g++", "-O2", "-shared", "-std=c++17", "-fPIC", *(f"-I{path}" for path in include)]
        subprocess.run([*command, source, "-o", built / (name + suffix)], check=True)
    return str(built)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venvs", type=Path, required=True, help="where the peers' environments are kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
