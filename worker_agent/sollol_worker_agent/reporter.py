"""The reporter: tells the fabric of a machine's hardware, and takes no jobs."""

from __future__ import annotations

import logging

from sollol_broker.broker import Broker
from sollol_broker.link import LinkConfig
from sollol_broker.url import BrokerUrl

from .advertise import Advertiser
from .config import WorkerConfig
from .figures import Figures
from .hardware import HardwareReader
from .names import worker_name

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 60.0


class Reporter:
    """Advertises this machine as a node without backends until it is stopped.

    For machines whose LLM server a worker elsewhere fronts: it learns from us what the machine is and has left.
    """

    def __init__(
        self, url: BrokerUrl, config: WorkerConfig, *, hardware: HardwareReader | None = None
    ) -> None:
        self.worker = worker_name(config.node)
        self._url = url
        self._node = config.node
        self.broker = Broker(
            url, name=f"sollol-reporter-{self.worker}", config=LinkConfig(patience_seconds=_PATIENCE_SECONDS)
        )
        self._advertiser = Advertiser(
            self.broker,
            self.worker,
            config,
            [],
            hardware=hardware or HardwareReader(),
            on_new_inbox=_nothing,
            on_change=_nothing,
            figures=Figures(is_on=config.counts),
            kind="reporter",
        )

    async def start(self) -> None:
        """Begin to report.

        Raises:
            BrokerUnavailable: Redis cannot be reached or will not do.
        """
        await self.broker.open()
        await self._advertiser.advertise()
        self._advertiser.start()
        seen = self._advertiser.last_hardware
        gpus = [f"{gpu.name} with {gpu.memory_total_mib:,} MiB" for gpu in seen.gpus] if seen else []
        log.info("reporting node %s to %s: %s", self._node, self._url, ", ".join(gpus) or "no GPU")

    async def stop(self) -> None:
        """End; the node is gone unless a worker of its name lives."""
        await self._advertiser.stop()
        try:
            await self.broker.leave(self.worker)
        except Exception:
            log.warning("could not take leave; the advert runs out by itself", exc_info=True)
        await self.broker.close()


def _nothing() -> None:
    pass
