"""What a gateway counts, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from starlette.types import Scope

# From a cached answer to a long generation on a slow machine.
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Several processes of one gateway write their counts there, and each tells the sum of all.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_PROCESSES = Path("/proc")


class Metrics(Collector):
    """Counters of this process, or of all of a gateway's processes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.in_flight = Gauge(
            "sollol_gateway_requests_in_flight",
            "Requests under way.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._requests = Counter(
            "sollol_gateway_requests",
            "Requests by path and status.",
            ("path", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "sollol_gateway_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        if shared := os.environ.get(_SHARED):
            self._registry = CollectorRegistry()
            self._registry.register(OfAllProcesses(Path(shared)))

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        # The route's pattern, not what a stranger has typed.
        path = getattr(scope.get("route"), "path", "other")
        self._requests.labels(path, scope["method"] if path != "other" else "", str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """For a registry of them and others."""
        return self._registry.collect()

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


class OfAllProcesses(Collector):
    """The sum over a gateway's processes; requests that were under way in one that died are not any more."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        self._collector = MultiProcessCollector(None, str(shared))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for file in self._shared.glob("gauge_live*_*.db"):
            pid = int(file.stem.rpartition("_")[2])
            if _PROCESSES.exists() and not (_PROCESSES / str(pid)).exists():
                mark_process_dead(pid, str(self._shared))  # type: ignore[no-untyped-call]
        found: Iterable[Metric] = self._collector.collect()  # type: ignore[no-untyped-call]
        return found
