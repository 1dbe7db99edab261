"""Something that is done again and again in the background until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from .errors import SollolError

log = logging.getLogger(__name__)


class Periodic:
    """Does a turn, waits, and does the next; whatever a turn raises is logged and never ends it.

    Args:
        turn: one round; gives seconds until the next, None = as usual.
        name: in the log, when a turn fails.
        seconds: between two turns.
        jitter: share by which that varies, so that many processes do not act in step.
        at_once: the first turn does not wait.
    """

    def __init__(
        self,
        turn: Callable[[], Awaitable[float | None]],
        *,
        name: str,
        seconds: float,
        jitter: float = 0.0,
        at_once: bool = False,
    ) -> None:
        self._do_turn = turn
        self._name = name
        self._seconds = seconds
        self._jitter = jitter
        self._at_once = at_once
        self._hurried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_started(self) -> bool:
        """Whether it has begun, and was not stopped."""
        return self._task is not None

    def start(self) -> None:
        """Begin, unless it has."""
        if self._task is None:
            self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """End it, and wait until it has: a turn that is under way is cancelled. It may be started again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        # The old one belongs to this event loop, and the next start may be in another.
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """Do the next turn now: there is something to do."""
        self._hurried.set()

    async def _loop(self) -> None:
        wait = 0.0 if self._at_once else self._usual()
        while True:
            await self._wait(wait)
            self._hurried.clear()
            wait = await self._turn_safely()

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()

    async def _turn_safely(self) -> float:
        """One turn; gives seconds until the next."""
        try:
            wait = await self._do_turn()
        except SollolError as error:
            log.warning("%s: %s", self._name, error)
        except Exception:
            log.exception("%s: a turn failed", self._name)
        else:
            return self._usual() if wait is None else max(wait, 0.0)
        return self._usual()

    def _usual(self) -> float:
        return self._seconds * random.uniform(1 - self._jitter, 1 + self._jitter)
