"""A circuit breaker per variant: a dead arm costs one probe now and then, not a timeout for every user."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Closed: calls go through. Open after `threshold` failures in a row: one probe every `retry_s` until one succeeds.

    Times are seconds of a monotonic clock, given by the caller.
    """

    threshold: int = 3
    retry_s: float = 1.0
    failures: int = 0
    next_probe_s: float = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether to call now; while open, saying yes books the probe."""
        if self.failures < self.threshold:
            return True
        if now_s < self.next_probe_s:
            return False
        self.next_probe_s = now_s + self.retry_s
        return True

    def succeeded(self) -> None:
        self.failures = 0

    def failed(self, now_s: float) -> None:
        self.failures += 1
        if self.failures >= self.threshold:
            self.next_probe_s = now_s + self.retry_s

    @property
    def is_open(self) -> bool:
        return self.failures >= self.threshold
