"""Where a figure comes from: hardware, versions, commit and command, kept with every result."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """The commit that is measured, or "unknown" outside a repository."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip() or "unknown"


def this_setting() -> dict[str, str]:
    """What the figures of a benchmark on one CPU thread were measured with."""
    import torch  # not every benchmark needs it

    return {
        "hardware": f"{torch.cpu.get_capabilities().get('cpu_name', platform.machine())}, one thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
