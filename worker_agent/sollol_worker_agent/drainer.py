"""Empties a worker that an operator drains, and lets it be when the operator thinks better of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sollol_broker.controls import Controls

log = logging.getLogger(__name__)


class Drainer:
    """Hands back what still runs once the time is up. The worker itself lives on.

    Args:
        drain: lets running jobs end for so many seconds, then hands the rest back.
        usual_seconds: where the operator names none.
    """

    def __init__(self, drain: Callable[[float], Awaitable[None]], *, usual_seconds: float) -> None:
        self._drain = drain
        self._usual_seconds = usual_seconds
        self._asked: float | None = None
        self._task: asyncio.Task[None] | None = None

    def obey(self, controls: Controls) -> None:
        """Begin, go on, or call it off, as the controls say now."""
        asked = None
        if controls.draining:
            asked = self._usual_seconds if controls.drain_seconds is None else controls.drain_seconds
        if asked == self._asked:
            return
        self._asked = asked
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if asked is not None:
            log.info("an operator drains this node: running jobs may take %.0f s more", asked)
            self._task = asyncio.create_task(self._run(asked))

    async def stop(self) -> None:
        """Call it off; what still runs is left as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self, seconds: float) -> None:
        try:
            await self._drain(seconds)
        except Exception:
            log.exception("draining: not all jobs could be handed back; their leases run out by themselves")
        else:
            log.info("drained: nothing runs here any more")
