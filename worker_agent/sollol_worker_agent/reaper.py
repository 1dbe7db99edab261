"""The reaper: gives back jobs of dead workers and ends those past their deadline. Every worker runs one."""

from __future__ import annotations

import logging

from sollol_broker.broker import Broker
from sollol_broker.periodic import Periodic

from .config import WorkerConfig

log = logging.getLogger(__name__)

_MOST_AT_ONCE = 100


class Reaper(Periodic):
    """Calls reap every `reap_seconds`; when it is stopped, other workers go on."""

    def __init__(self, broker: Broker, config: WorkerConfig) -> None:
        super().__init__(self._turn, name="reaper", seconds=config.reap_seconds, jitter=0.2)
        self._broker = broker
        self._config = config

    async def _turn(self) -> None:
        reaped = await self._broker.reap(most=_MOST_AT_ONCE, most_crashes=self._config.most_crashes)
        if reaped.given_back or reaped.dead or reaped.expired:
            tell = log.warning if reaped.given_back or reaped.dead else log.info
            tell("reaper: %d given back, %d dead, %d expired", reaped.given_back, reaped.dead, reaped.expired)
