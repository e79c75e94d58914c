"""The time that the serving benchmark has: one clock from its start, and an alarm that ends whatever takes too long."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTimeError(Exception):
    """The limit came before the end."""


class Clock:
    """Runs from its making; a clean stop of everything takes the last stop_s seconds before limit_s."""

    def __init__(self, limit_s: float, stop_s: float) -> None:
        self._began, self._work_s = time.monotonic(), limit_s - stop_s

    @property
    def left_s(self) -> float:
        """Until the limit, less what a clean stop takes."""
        return self._work_s - (time.monotonic() - self._began)

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the main thread after some seconds, whatever it waits for."""

    def ring(_signal: int, _frame: object) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
