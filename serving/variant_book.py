"""Which variants there are: names and checkpoint folders, in a file of the home that outlives restarts."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping
from pathlib import Path

from model.catalogue import Catalogue
from model.errors import ModelError
from serving.errors import ConfigurationError, InvalidRequestError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class VariantBook:
    """`variants.json` in the home: {name: checkpoint folder}."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Path]:
        """All of them. Raises ConfigurationError when the file is not what `write` made."""
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(name): Path(folder) for name, folder in stored.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigurationError(f"{self._path}: expected {{name: checkpoint folder}}: {error}") from error

    def add(self, variants: Mapping[str, Path]) -> None:
        """Write down more of them; a name that is there already gets the new folder. One process at a time."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.read() | dict(variants)
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps({name: str(folder.absolute()) for name, folder in known.items()}, indent=2))
            fresh.replace(self._path)

    def catalogue(self, name: str) -> Catalogue:
        """What a variant can recommend. Raises ConfigurationError."""
        folder = self.read().get(name)
        if folder is None:
            raise ConfigurationError(f"default_variant: no variant is called {name!r}")
        try:
            return Catalogue.from_json((folder / "catalogue.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, ModelError) as error:
            raise ConfigurationError(f"variant {name!r}: its checkpoint has no catalogue: {error}") from error


def checked_name(name: str) -> str:
    """The name itself, when it may be part of a path. Raises InvalidRequestError."""
    if not _NAME.fullmatch(name):
        raise InvalidRequestError("name", f"must match {_NAME.pattern}, got {name!r}")
    return name
