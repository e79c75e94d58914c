"""Waiting for what another task does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def until(holds: Callable[[], Any]) -> None:
    """Returns when `holds()` is true; raises AssertionError when it has not become so within seconds."""
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")
