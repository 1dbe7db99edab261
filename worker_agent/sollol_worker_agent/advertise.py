"""The advert: tells the fabric every few seconds that this worker lives, what it has and how busy it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Literal

from sollol_broker.broker import Advertised, Broker
from sollol_broker.claim_rule import Share, together
from sollol_broker.controls import Controls
from sollol_broker.errors import SollolError
from sollol_broker.listeners import own_addresses
from sollol_broker.series import Gauge
from sollol_broker.version import VERSION

from .backends.protocol import ModelInfo
from .config import WorkerConfig
from .controls import advertised as as_controlled
from .controls import labelled
from .elsewhere import Elsewhere, Told
from .figures import Figures
from .hardware import Hardware, HardwareReader
from .lane import Lane
from .pace import Pace
from .pace_store import PaceStore

log = logging.getLogger(__name__)

# Adverts that may be lost before the worker counts as gone.
_ADVERTS_PER_TTL = 3.5
_NAP_SECONDS = 1.0


class Advertiser:
    """Refreshes lanes and hardware, and writes the advert.

    Args:
        on_new_inbox: called when the inbox had to be made anew.
        on_change: called after each refresh: there may be more to claim now.
        more_of_node: more fields of the node's advert.
        figures: what is counted meanwhile; each advert tells of it.
        kind: what we are; a reporter takes no jobs.
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
        more_of_node: Callable[[], Mapping[str, str]] = dict,
        figures: Figures | None = None,
        kind: Literal["worker", "reporter"] = "worker",
    ) -> None:
        self._broker = broker
        self._worker = worker
        self._config = config
        self._lanes = lanes
        self._hardware = hardware
        self._on_new_inbox = on_new_inbox
        self._on_change = on_change
        self._more_of_node = more_of_node
        self._figures = figures or Figures(is_on=False)
        self._kind = kind
        self._elsewhere = Elsewhere(broker, config.elsewhere, [lane.backend.url for lane in lanes])
        self._told = Told()
        self._paces = PaceStore(broker, config.node)
        self._started = time.time()
        self._advertised_at = -math.inf
        self._draining = False
        self._called = asyncio.Event()
        self._once = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.last_hardware: Hardware | None = None
        self.controls = Controls()

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

    def advertise_soon(self) -> None:
        """Do so now rather than when it is due: an operator has changed something."""
        self._called.set()

    async def advertise(self) -> None:
        """Refresh everything and write it.

        Raises:
            SollolError: Redis could not be reached.
        """
        async with self._once:
            try:
                await self._look()
                advertised = await self._obey(await self._write())
            finally:
                self._advertised_at = time.monotonic()
            await self._paces.write(self._lanes)
        if advertised.new_inbox:
            self._on_new_inbox()
        self._on_change()

    async def _look(self) -> None:
        """Ask the backends and the machine how they are."""
        await asyncio.gather(*(lane.refresh() for lane in self._lanes))
        if self._config.elsewhere:
            self._told = await self._elsewhere.ask()
            self.last_hardware = self._told.hardware
        else:
            self.last_hardware = await asyncio.to_thread(self._hardware.read)
        if self.last_hardware is not None:
            for lane in self._lanes:
                lane.note_hardware(self.last_hardware)
        await self._paces.read(self._lanes)

    async def _obey(self, advertised: Advertised) -> Advertised:
        """Take over what an operator has set, and tell the fabric what has become of it."""
        controls = Controls.from_bytes(advertised.controls)
        if controls == self.controls:
            return advertised
        self.controls = controls
        log.info("an operator has set: %s", controls)
        again = await self._write()
        return Advertised(advertised.new_inbox or again.new_inbox, again.controls)

    async def _write(self) -> Advertised:
        advertised = await self._broker.advertise(
            self._worker,
            self._config.node,
            ttl_ms=round(self._config.advertise_seconds * _ADVERTS_PER_TTL * 1000),
            worker_fields=self._worker_fields(),
            node_fields={**self._node_fields(), **self._more_of_node()},
            models={} if self._draining else as_controlled(self.controls, self._shares()),
            counted=self._figures.tell(self._gauges()),
        )
        self._figures.told(advertised.taken)
        self._figures.set_clock(advertised.now_ms)
        return advertised

    def _node_fields(self) -> dict[str, str]:
        if self._config.elsewhere:
            return self._told.node_fields(self._config.elsewhere, self._config.node)
        return {
            "host": platform.node(),
            "os": f"{platform.system()} {platform.machine()}",
            "hardware": json.dumps(self.last_hardware.as_dict() if self.last_hardware is not None else {}),
            "addresses": json.dumps(own_addresses()),
        }

    async def _loop(self) -> None:
        while True:
            left = self._next_at() - time.monotonic()
            if left > 0 and not self._called.is_set():
                # In short naps, for a backend may fall ill meanwhile, and then a check is due sooner.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _NAP_SECONDS)):
                        await self._called.wait()
                continue
            self._called.clear()
            try:
                await self.advertise()
            except SollolError as error:
                log.warning("advert: %s", error)
            except Exception:  # a worker without adverts is taken for dead
                log.exception("advert: a mistake of ours")
                await asyncio.sleep(_NAP_SECONDS)

    def _next_at(self) -> float:
        """When the next advert is due, or the check of a backend: an advert checks them all."""
        if any(lane.is_outdated for lane in self._lanes):
            return -math.inf
        checks = (lane.health.check_seconds for lane in self._lanes)
        return self._advertised_at + min(self._config.advertise_seconds, *checks, math.inf)

    def _gauges(self) -> dict[Gauge, float | None]:
        seen: dict[Gauge, float | None] = {"busy": self._busy(), "slots": self._slots()}
        if (now := self.last_hardware) is not None:
            percents = [gpu.utilisation_percent for gpu in now.gpus if gpu.utilisation_percent is not None]
            seen["vram_used_mib"] = now.vram_total_mib - now.vram_free_mib if now.gpus else None
            seen["ram_used_mib"] = now.ram_total_mib - now.ram_available_mib
            seen["load"] = now.load_1m
            seen["gpu_percent"] = sum(percents) / len(percents) if percents else None
        return seen

    def _busy(self) -> int:
        return sum(lane.busy for lane in self._lanes)

    def _slots(self) -> int:
        slots = sum(lane.slots for lane in self._lanes if lane.models)
        return slots if self._config.slots is None else min(slots, self._config.slots)

    def _shares(self) -> dict[str, Share]:
        names = sorted({name for lane in self._lanes for name in lane.models})
        return {
            name: together([lane.share(name) for lane in self._lanes if name in lane.models])
            for name in names
        }

    def _worker_fields(self) -> dict[str, str]:
        return {
            "kind": self._kind,
            "elsewhere": self._config.elsewhere,
            "version": VERSION,
            "functions": self._broker.functions.version,
            "started": f"{self._started:.0f}",
            "clock": f"{time.time() * 1000:.0f}",
            "state": "draining" if self._draining else self.controls.state,
            "labels": json.dumps(
                labelled(self._config.labels, self.controls, (lane.models for lane in self._lanes))
            ),
            "slots": str(self._slots()),
            "busy": str(self._busy()),
            "backends": json.dumps([self._lane_fields(lane) for lane in self._lanes]),
        }

    def _lane_fields(self, lane: Lane) -> dict[str, object]:
        return {
            "kind": lane.backend.kind,
            "url": lane.backend.url,
            "version": lane.version,
            "open": list(lane.open_to),
            "slots": lane.slots,
            "busy": lane.busy,
            "http": asdict(lane.backend.traffic),
            "down": lane.down_because,
            "health": lane.health.as_dict(),
            "loaded": sorted(lane.loaded),
            "too_large": lane.too_large,
            "models": {
                name: _model_fields(info, lane.pace(name))
                for name, info in lane.models.items()
                if self.controls.allows(name)
            },
        }


def _model_fields(info: ModelInfo, pace: Pace) -> dict[str, object]:
    return {
        "kinds": sorted(info.kinds),
        "size_bytes": info.size_bytes,
        "context_tokens": info.context_tokens,
        "capabilities": list(info.capabilities),
        "continues": info.continues,
        "listing": dict(info.listing),
        "prompt_ms": round(pace.prompt_ms, 3),
        "output_ms": round(pace.output_ms, 3),
        "slowdown": round(pace.slowdown, 3),
        "load_ms": round(pace.load_ms),
        "success_rate": round(pace.success_rate, 3),
        "pace_error": round(pace.error, 3),
        "jobs_seen": pace.jobs_seen,
    }
