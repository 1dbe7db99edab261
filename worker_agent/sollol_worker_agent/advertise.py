"""The advert: tells the fabric every few seconds that this worker lives, what it has and how busy it is."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import time
from collections.abc import Callable

from sollol_broker.broker import Broker
from sollol_broker.claim_rule import Share, together
from sollol_broker.errors import SollolError
from sollol_broker.version import VERSION

from .config import WorkerConfig
from .hardware import Hardware, HardwareReader
from .lane import Lane

log = logging.getLogger(__name__)

# Adverts that may be lost before the worker counts as gone.
_ADVERTS_PER_TTL = 3.5


class Advertiser:
    """Refreshes lanes and hardware, and writes the advert.

    Args:
        on_new_inbox: called when the inbox had to be made anew.
        on_change: called after each refresh: there may be more to claim now.
    """

    def __init__(
        self,
        broker: Broker,
        worker: str,
        config: WorkerConfig,
        lanes: list[Lane],
        *,
        hardware: HardwareReader,
        on_new_inbox: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._config = config
        self._lanes = lanes
        self._hardware = hardware
        self._on_new_inbox = on_new_inbox
        self._on_change = on_change
        self._started = time.time()
        self._draining = False
        self._once = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.last_hardware: Hardware | None = None

    def start(self) -> None:
        """Go on advertising, after a first `advertise()` by the caller."""
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop; the advert runs out by itself unless the worker leaves."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def drain(self) -> None:
        """From now on serve nothing: new jobs go elsewhere, cancels still reach us."""
        self._draining = True
        await self.advertise()

    async def advertise(self) -> None:
        """Refresh everything and write it.

        Raises:
            SollolError: Redis could not be reached.
        """
        async with self._once:
            await asyncio.gather(*(lane.refresh() for lane in self._lanes))
            self.last_hardware = await asyncio.to_thread(self._hardware.read)
            advertised = await self._broker.advertise(
                self._worker,
                self._config.node,
                ttl_ms=round(self._config.advertise_seconds * _ADVERTS_PER_TTL * 1000),
                worker_fields=self._worker_fields(),
                node_fields={
                    "host": platform.node(),
                    "os": f"{platform.system()} {platform.machine()}",
                    "hardware": json.dumps(self.last_hardware.as_dict()),
                },
                models={} if self._draining else self._shares(),
            )
        if advertised.new_inbox:
            self._on_new_inbox()
        self._on_change()

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(self._config.advertise_seconds)
            try:
                await self.advertise()
            except SollolError as error:
                log.warning("advert: %s", error)

    def _shares(self) -> dict[str, Share]:
        names = sorted({name for lane in self._lanes for name in lane.models})
        return {
            name: together([lane.share(name) for lane in self._lanes if name in lane.models])
            for name in names
        }

    def _worker_fields(self) -> dict[str, str]:
        slots = sum(lane.slots for lane in self._lanes if lane.models)
        return {
            "version": VERSION,
            "functions": self._broker.functions.version,
            "started": f"{self._started:.0f}",
            "state": "draining" if self._draining else "up",
            "labels": json.dumps(self._config.labels),
            "slots": str(slots if self._config.slots is None else min(slots, self._config.slots)),
            "busy": str(sum(lane.busy for lane in self._lanes)),
            "backends": json.dumps([self._lane_fields(lane) for lane in self._lanes]),
        }

    def _lane_fields(self, lane: Lane) -> dict[str, object]:
        return {
            "kind": lane.backend.kind,
            "url": lane.backend.url,
            "slots": lane.slots,
            "busy": lane.busy,
            "down": lane.down_because,
            "loaded": sorted(lane.loaded),
            "models": {
                name: {
                    "kinds": sorted(info.kinds),
                    "size_bytes": info.size_bytes,
                    "context_tokens": info.context_tokens,
                    "capabilities": list(info.capabilities),
                    "prompt_ms": round(lane.pace(name).prompt_ms, 3),
                    "output_ms": round(lane.pace(name).output_ms, 3),
                }
                for name, info in lane.models.items()
            },
        }
