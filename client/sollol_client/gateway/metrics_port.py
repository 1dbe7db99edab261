"""The gateway's figures on a port of their own: Prometheus has no API key."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from sollol_broker.broker import Broker
from sollol_broker.prometheus import FabricFigures, LoopCollector, serve

from .config import GatewayConfig
from .metrics import Metrics

log = logging.getLogger(__name__)


class MetricsPort:
    """Shows what a gateway counts, and the fabric's figures where it is asked to, on `config.metrics_port`.

    Of several processes of one gateway the first one listens. Any of them tells the sum of all.
    """

    def __init__(self, config: GatewayConfig, metrics: Metrics, broker: Broker) -> None:
        self._config = config
        self._fabric = LoopCollector(FabricFigures(broker).families)
        self._registry = CollectorRegistry()
        self._registry.register(metrics)
        if config.fabric_metrics:
            self._registry.register(self._fabric)
        self._stop: Callable[[], None] | None = None

    def start(self) -> None:
        """Listen, unless nothing is asked for, or another one does."""
        if not self._config.metrics_port:
            return
        self._fabric.start()
        try:
            self._stop = serve(
                self._registry, self._config.metrics_host, self._config.metrics_port, flag="--metrics-port"
            )
        except ValueError as error:  # whether it is free was seen before the first process began
            log.debug("another process tells what we count: %s", error)

    def stop(self) -> None:
        """Listen no more."""
        self._fabric.stop()
        if self._stop is not None:
            self._stop()
