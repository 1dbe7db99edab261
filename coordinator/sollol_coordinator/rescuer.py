"""Gives back what dead workers held and ends what is past its deadline, while this process leads.

Workers do that, too: without a coordinator nothing is lost, it only takes a moment longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError

from .metrics import Metrics

log = logging.getLogger(__name__)

_SECONDS = 1.0
_MOST_AT_ONCE = 200


class Rescuer:
    """Calls reap once a second.

    Args:
        term: of this process now; 0 = it does not lead.
        most_crashes: as the workers have it.
    """

    def __init__(
        self, broker: Broker, *, term: Callable[[], int], metrics: Metrics, most_crashes: int = 3
    ) -> None:
        self._broker = broker
        self._term = term
        self._metrics = metrics
        self._most_crashes = most_crashes
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop; workers go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            if not self._term():
                continue
            try:
                reaped = await self._broker.reap(most=_MOST_AT_ONCE, most_crashes=self._most_crashes)
            except SollolError as error:
                log.warning("rescue: %s", error)
                continue
            self._metrics.rescued.inc(reaped.given_back)
            if reaped.given_back or reaped.dead or reaped.expired:
                tell = log.warning if reaped.given_back or reaped.dead else log.info
                tell(
                    "rescue: %d given back, %d dead, %d expired",
                    reaped.given_back,
                    reaped.dead,
                    reaped.expired,
                )
