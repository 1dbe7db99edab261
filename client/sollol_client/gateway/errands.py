"""Sees to the errands of batches: takes those that nobody has, and keeps them while it works on them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from sollol_broker.errand_store import LEASE_MS, Errand, ErrandStore
from sollol_broker.errors import SollolError
from sollol_broker.periodic import Periodic

from ..tasks import Tasks

log = logging.getLogger(__name__)

# Between two looks for errands that nobody has; a new one is begun at once by the gateway that took it in.
_LOOK_SECONDS = 2.0
_RENEW_SECONDS = LEASE_MS / 1000 / 3
# At once, in one process; each looks at its batch a few times a second.
_MOST = 128


class Errands:
    """The loop of one gateway.

    Args:
        see_to: does an errand, by the kind that its record names.
    """

    def __init__(self, store: ErrandStore, see_to: Mapping[str, Callable[[Errand], Awaitable[None]]]) -> None:
        self._store = store
        self._see_to = see_to
        self._tasks = Tasks()
        self._mine: set[str] = set()
        self._looking = Periodic(self._look, name="errands of batches", seconds=_LOOK_SECONDS, at_once=True)

    def start(self) -> None:
        """Begin to look."""
        self._looking.start()

    async def stop(self) -> None:
        """Leave all errands to other gateways."""
        await self._looking.stop()
        await self._tasks.stop()

    def hurry(self) -> None:
        """There is a new one."""
        self._looking.hurry()

    async def _look(self) -> None:
        if (room := _MOST - len(self._mine)) <= 0:
            return
        for errand_id in await self._store.claim(room):
            if errand_id not in self._mine:
                self._mine.add(errand_id)
                self._tasks.own(self._do(errand_id))

    async def _do(self, errand_id: str) -> None:
        renewing = asyncio.ensure_future(self._renew(errand_id))
        try:
            errand = await self._store.find(errand_id)
            if errand is None or errand.is_over:
                await self._store.forget(errand_id)
            else:
                await self._see_to[errand.record["kind"]](errand)
        except asyncio.CancelledError:
            with contextlib.suppress(SollolError):
                await asyncio.shield(self._store.leave(errand_id))
            raise
        except Exception:
            # Its lease runs out, and somebody tries again.
            log.exception("errand of batch %s", errand_id)
        finally:
            renewing.cancel()
            self._mine.discard(errand_id)

    async def _renew(self, errand_id: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            with contextlib.suppress(SollolError):
                await self._store.renew(errand_id)
