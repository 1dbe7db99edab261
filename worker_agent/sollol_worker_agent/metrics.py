"""A worker's own figures for Prometheus: what its jobs took, and how its LLM servers are."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from sollol_broker.prometheus import LoopCollector, job_families, serve

from .agent import Agent


class WorkerMetrics:
    """Shows one worker's figures on a port of this machine.

    Args:
        agent: the worker.
    """

    def __init__(self, agent: Agent, *, host: str, port: int) -> None:
        self._agent = agent
        self._host = host
        self._port = port
        self._collector = LoopCollector(self.families)
        self._stop: Callable[[], None] | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            ValueError: nobody can listen there.
        """
        registry = CollectorRegistry()
        registry.register(self._collector)
        self._collector.start()
        self._stop = serve(registry, self._host, self._port, flag="--metrics-port")

    def stop(self) -> None:
        """Listen no more."""
        self._collector.stop()
        if self._stop is not None:
            self._stop()

    async def families(self) -> list[Metric]:
        """What there is to tell."""
        node, lanes = self._agent.config.node, self._agent.lanes
        slots = GaugeMetricFamily(
            "sollol_worker_slots", "Jobs that an LLM server can run at once.", labels=("host", "backend")
        )
        busy = GaugeMetricFamily(
            "sollol_worker_slots_busy", "Jobs that an LLM server runs.", labels=("host", "backend")
        )
        up = GaugeMetricFamily(
            "sollol_worker_backend_up", "1 while an LLM server gets jobs.", labels=("host", "backend")
        )
        for lane in lanes:
            where = urlsplit(lane.backend.url)
            # Without what a URL may hold of names and passwords.
            labels = (node, f"{lane.backend.kind}://{where.hostname or ''}:{where.port or ''}")
            slots.add_metric(labels, lane.slots)
            busy.add_metric(labels, lane.busy)
            up.add_metric(labels, 0 if lane.down_because else 1)
        return [slots, busy, up, *job_families({node: self._agent.figures.totals()})]
