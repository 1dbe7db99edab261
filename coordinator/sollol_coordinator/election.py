"""The election: of several coordinators one leads, and each knows at any moment whether it may act."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.leader import elect
from sollol_broker.periodic import Periodic

log = logging.getLogger(__name__)

# A dead leader's place is taken within 1.5 leases: one until its own runs out, then one look of the others.
_LOOK_SHARE = 0.3
# A leader that could not renew steps back before anybody else may be elected.
_TRUST_SHARE = 0.8


class Election:
    """Stands for election until stopped.

    Args:
        candidate: a name that no other process has, or ever had.
        lease_seconds: so long a leader that died is waited for.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        candidate: str,
        lease_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._candidate = candidate
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._term = 0
        self._trusted_until = 0.0
        self._turns = Periodic(self._turn, name="election", seconds=lease_seconds * _LOOK_SHARE, at_once=True)

    @property
    def term(self) -> int:
        """The term that this process leads now; 0 = it does not, or cannot be sure any more.

        Every order must carry it, and the function that carries the order out compares it: a process can be
        frozen between its look here and its order.
        """
        return self._term if self._clock() < self._trusted_until else 0

    def start(self) -> None:
        """Stand for election."""
        self._turns.start()

    async def stop(self) -> None:
        """Step down, so that another one may lead at once."""
        if not self._turns.is_started:
            return
        await self._turns.stop()
        self._trusted_until = 0.0
        try:
            await elect(self._broker, self._candidate, 0, patience_seconds=self._lease_seconds / 2)
        except SollolError as error:
            log.warning("election: could not step down: %s", error)

    async def _turn(self) -> float:
        """Ask once; gives seconds until the next time."""
        asked_at = self._clock()
        now = await elect(
            self._broker,
            self._candidate,
            round(self._lease_seconds * 1000),
            patience_seconds=self._lease_seconds * _LOOK_SHARE,
        )
        if now.term != self._term:
            log.info("election: leader is %s", now.leader or "nobody")
        self._term = now.term
        if now.term:
            self._trusted_until = asked_at + _TRUST_SHARE * self._lease_seconds
            return self._lease_seconds * _LOOK_SHARE
        # Spread a little: the first to ask is elected.
        soon = min(self._lease_seconds * _LOOK_SHARE, now.left_ms / 1000)
        return soon + self._lease_seconds * random.uniform(0.01, 0.05)
