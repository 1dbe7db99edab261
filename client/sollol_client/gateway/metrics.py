"""What a gateway counts, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import Scope

# From a cached answer to a long generation on a slow machine.
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
# Several processes of one gateway write their counts there, and each tells the sum of all.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Counters of this process, or of all of a gateway's processes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        shared = _SHARED in os.environ
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
        if shared:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        # The route's pattern, not what a stranger has typed.
        path = getattr(scope.get("route"), "path", "other")
        self._requests.labels(path, scope["method"] if path != "other" else "", str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
