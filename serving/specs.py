"""The experiment specifications that come with Crossfade: in a checkout, or where the wheel installed them."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from serving.errors import ConfigurationError

_PLACES = (
    Path(__file__).parent.parent / "deploy" / "experiments",
    Path(sysconfig.get_path("data")) / "share" / "crossfade" / "experiments",
)


def spec_text(name: str) -> str:
    """The YAML of `<name>.yaml`. Raises ConfigurationError naming what there is."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        raise ConfigurationError("deploy/experiments: not found; run from a checkout or an installed wheel")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ConfigurationError(f"specification: no {name!r} in {folder}; there are {known}")
    return path.read_text(encoding="utf-8")
