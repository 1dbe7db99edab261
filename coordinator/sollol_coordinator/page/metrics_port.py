"""The fabric's figures on a port of their own: Prometheus cannot log in."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.portal import Portal
from sollol_broker.prometheus import FabricFigures, LoopCollector, serve


def open_metrics(broker: Broker, portal: Portal, host: str, port: int) -> Callable[[], None]:
    """Listen; gives what stops that.

    Raises:
        SollolError: nobody can listen there.
    """
    collector = LoopCollector(FabricFigures(broker).families)

    async def begin() -> None:
        collector.start()

    portal.run(begin())
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        stop = serve(registry, host, port, flag="--metrics-port")
    except ValueError as error:
        raise SollolError(str(error)) from error

    def close() -> None:
        collector.stop()
        stop()

    return close
