"""Files that hold secrets: made once, whole at once, readable by their owner only."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path


def create_once(path: Path, text: str) -> None:
    """Make a file for its owner only, whole at once; of processes that try at the same time the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    fresh.touch(mode=0o600)
    fresh.write_text(text, encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(fresh)
    fresh.unlink()
