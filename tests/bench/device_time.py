"""How long calls take on a GPU: one after the other, as under load, or each after a pause.

Kept busy, a card reaches its power limit and lowers its clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

ROUNDS = 5

_PAUSE_CYCLES = 400_000_000
"""Of the kernel that waits in front: about a fifth of a second, in which the host queues a whole decode."""


def times_ms(run: Callable[[], object], rounds: int) -> list[float]:
    """Each call between two device events, after two warm ones."""
    for _ in range(2):
        run()
    pairs = [_between_events(run) for _ in range(rounds)]
    torch.cuda.synchronize()
    return sorted(began.elapsed_time(ended) for began, ended in pairs)


def after_pause(run: Callable[[], object]) -> float:
    """Seconds on the device of a call that is queued while the device waits."""
    torch.cuda.synchronize()
    torch.cuda._sleep(_PAUSE_CYCLES)
    began, ended = _between_events(run)
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def after_pauses(run: Callable[[], object]) -> float:
    """The median of ROUNDS times `after_pause`, behind a warm one."""
    return statistics.median([after_pause(run) for _ in range(ROUNDS + 1)][1:])


def _between_events(run: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    run()
    ended.record()
    return began, ended
