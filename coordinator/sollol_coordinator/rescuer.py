"""Gives back what dead workers held and ends what is past its deadline, while this process leads.

Workers do that, too: without a coordinator nothing is lost, it only takes a moment longer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sollol_broker.broker import Broker
from sollol_broker.periodic import Periodic

from .metrics import Metrics

log = logging.getLogger(__name__)

_SECONDS = 1.0
_MOST_AT_ONCE = 200


class Rescuer(Periodic):
    """Calls reap once a second; when it is stopped, workers go on.

    Args:
        term: of this process now; 0 = it does not lead.
        most_crashes: as the workers have it.
    """

    def __init__(
        self, broker: Broker, *, term: Callable[[], int], metrics: Metrics, most_crashes: int = 3
    ) -> None:
        super().__init__(self._turn, name="rescue", seconds=_SECONDS)
        self._broker = broker
        self._term = term
        self._metrics = metrics
        self._most_crashes = most_crashes

    async def _turn(self) -> None:
        if not self._term():
            return
        reaped = await self._broker.reap(most=_MOST_AT_ONCE, most_crashes=self._most_crashes)
        self._metrics.rescued.inc(reaped.given_back)
        if reaped.given_back or reaped.dead or reaped.expired:
            tell = log.warning if reaped.given_back or reaped.dead else log.info
            tell("rescue: %d given back, %d dead, %d expired", reaped.given_back, reaped.dead, reaped.expired)
