"""What one gateway counts, for Prometheus. No metric decides anything: decisions rest on the SQL store alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from experiment.events import Served

LATENCY_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.35, 0.5, 1.0, 2.5)
"""Upper limits of the latency buckets; 70 and 140 ms are the two figures of the paper (arXiv 2603.11486)."""


class Telemetry:
    """The registry of one gateway replica, and the names of what is in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "crossfade_requests",
            "Recommendation requests by what became of them: ok, fallback or failed",
            ["experiment", "arm", "variant", "outcome"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "crossfade_request_latency_seconds",
            "From the request's arrival to the answer, without writing it down",
            ["variant"],
            buckets=LATENCY_S,
            registry=self.registry,
        )
        self._events = Counter("crossfade_events", "Events reported by clients", ["outcome"], registry=self.registry)

    def observe(self, served: Served) -> None:
        """Count one answer."""
        outcome = "failed" if served.failed else "fallback" if served.fallback else "ok"
        experiment, arm = served.experiment or "", served.arm or ""
        self._requests.labels(experiment, arm, served.served_variant, outcome).inc()
        self._latency.labels(served.served_variant).observe(served.latency_ms / 1000)

    def count_events(self, accepted: int, refused: int) -> None:
        """Count one batch of reports."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("refused").inc(refused)

    def watch(self, readings: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Gauges that are read when somebody looks: name -> (meaning, where to read it)."""
        for name, (meaning, read) in readings.items():
            Gauge(name, meaning, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
