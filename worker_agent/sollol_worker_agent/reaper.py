"""The reaper: gives back jobs of dead workers and ends those past their deadline. Every worker runs one."""

from __future__ import annotations

import asyncio
import logging
import random

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError

from .config import WorkerConfig

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 100


class Reaper:
    """Calls reap every `reap_seconds`."""

    def __init__(self, broker: Broker, config: WorkerConfig) -> None:
        self._broker = broker
        self._config = config
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop; other workers go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(self._config.reap_seconds * random.uniform(0.8, 1.2))
            try:
                reaped = await self._broker.reap(
                    most=_MOST_AT_ONCE,
                    most_crashes=self._config.most_crashes,
                )
            except SollolError as error:
                log.warning("reaper: %s", error)
                continue
            if reaped.given_back or reaped.dead or reaped.expired:
                tell = log.warning if reaped.given_back or reaped.dead else log.info
                tell(
                    "reaper: %d given back, %d dead, %d expired",
                    reaped.given_back,
                    reaped.dead,
                    reaped.expired,
                )
