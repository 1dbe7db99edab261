"""Gives this node's lanes to a group and takes them back: what the agent does for `rpc.desk`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from sollol_broker.errors import BackendError, SollolError

from .backends.protocol import Backend
from .hardware import Hardware
from .lane import Lane

log = logging.getLogger(__name__)

# The next advert is due in a few seconds anyway.
_TELL_SECONDS = 5.0


class Lending:
    """See `rpc.desk.Host`.

    Args:
        lanes: the agent's, shared with its other parts.
        drain: lets running jobs end for so many seconds, then hands the rest back.
        advertise: says at once what has changed.
        hardware: as read last.
    """

    def __init__(
        self,
        lanes: list[Lane],
        *,
        drain: Callable[[float], Awaitable[None]],
        advertise: Callable[[], Awaitable[None]],
        hardware: Callable[[], Hardware | None],
    ) -> None:
        self._lanes = lanes
        self._drain = drain
        self._advertise = advertise
        self._hardware = hardware

    @property
    def hardware(self) -> Hardware | None:
        """As read last."""
        return self._hardware()

    async def lend_lanes(self, group: str, drain_seconds: float) -> None:
        """Run nothing but this group's jobs from now on, and have the models out of memory."""
        for lane in self._lanes:
            lane.lent_to = group
        await self._advertise()
        await self._drain(drain_seconds)
        for lane in self._lanes:
            for model in lane.loaded:
                try:
                    await lane.backend.unload(model)
                except BackendError as error:
                    log.warning("group %s: %s stays in memory: %s", group, model, error)

    async def take_lanes_back(self) -> None:
        """Go on as before."""
        for lane in self._lanes:
            lane.lent_to = ""
        await self.tell()

    def add_backend(self, backend: Backend) -> None:
        """Front a group's server."""
        self._lanes.append(Lane(backend))

    async def remove_backend(self, backend: Backend) -> None:
        """Front it no more; what still runs on it fails by itself, for its server has gone."""
        for lane in [each for each in self._lanes if each.backend is backend]:
            self._lanes.remove(lane)
        await backend.close()

    def is_busy(self, backend: Backend | None) -> bool:
        """Whether a job runs on that server."""
        return any(lane.busy for lane in self._lanes if lane.backend is backend)

    async def tell(self) -> None:
        """Advertise now, or when Redis is back."""
        with contextlib.suppress(SollolError, TimeoutError):
            async with asyncio.timeout(_TELL_SECONDS):
                await self._advertise()
