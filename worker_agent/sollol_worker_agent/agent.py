"""The worker agent: builds all its parts, starts them in order, and takes them down in the reverse."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence

from sollol_broker.broker import Broker, Lease
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.library import Library
from sollol_broker.link import LinkConfig
from sollol_broker.live_log import LiveLog
from sollol_broker.url import BrokerUrl
from sollol_broker.words import Entry

from .advertise import Advertiser
from .backends.protocol import Backend
from .config import WorkerConfig
from .drainer import Drainer
from .figures import Figures
from .hardware import HardwareReader
from .heartbeat import Heartbeat
from .lane import Lane
from .lending import Lending
from .librarian import Librarian
from .names import worker_name
from .pull import Puller
from .reaper import Reaper
from .rpc.desk import GroupSettings, OrderDesk

log = logging.getLogger(__name__)

# An answer that took minutes to make is worth a longer wait for a Redis that restarts.
_PATIENCE_SECONDS = 60.0
# Nobody is lost without the announcement, so a Redis that is away must not hold up the drain.
_ANNOUNCE_SECONDS = 5.0


class Agent:
    """One worker: pulls jobs for its backends until it is stopped.

    Args:
        url: the fabric's Redis.
        backends: the LLM servers to front; the agent closes them.
        functions: another function library than this release's (for tests).
        groups: how this node takes part in groups; None = it does not.

    Attributes:
        live: what it says to the live log.
    """

    def __init__(
        self,
        url: BrokerUrl,
        config: WorkerConfig,
        backends: Sequence[Backend],
        *,
        hardware: HardwareReader | None = None,
        functions: Library | None = None,
        groups: GroupSettings | None = None,
    ) -> None:
        self.config = config
        self.worker = worker_name(config.node)
        self.lanes = [self._lane(backend) for backend in backends]
        self._url = url
        self._functions = functions
        self.broker = self._new_broker()
        self.figures = Figures(is_on=config.counts)
        self.live = LiveLog(
            self.broker,
            source="worker",
            process=self.worker,
            node=config.node,
            sample=config.log_sample,
        )
        self._advertiser = Advertiser(
            self.broker,
            self.worker,
            config,
            self.lanes,
            hardware=hardware or HardwareReader(),
            on_new_inbox=self._rewind,
            on_change=self._on_change,
            more_of_node=self._more_of_node,
            figures=self.figures,
        )
        self._puller = Puller(
            self.broker,
            self.worker,
            config,
            self.lanes,
            self._advertiser.advertise,
            self.live,
            figures=self.figures,
        )
        self._drainer = Drainer(self._puller.drain, usual_seconds=config.drain_seconds)
        lending = Lending(
            self.lanes,
            drain=self._puller.drain,
            advertise=self._advertiser.advertise,
            hardware=lambda: self._advertiser.last_hardware,
        )
        self._desk = (
            OrderDesk(self.broker, url, lending, node=config.node, settings=groups) if groups else None
        )
        self._librarian = Librarian(self.broker, self.lanes, on_change=self._advertiser.advertise_soon)
        self._inbox = Inbox(self.broker, self.worker, on_entry=self._on_entry)
        self._reaper = Reaper(self.broker, config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heartbeat = Heartbeat(
            make_broker=self._new_broker,
            lease_seconds=config.lease_seconds,
            leases=self._leases,
            call_off=self._call_off_from_thread,
        )

    async def start(self) -> None:
        """Join the fabric.

        Raises:
            BrokerUnavailable: Redis cannot be reached or will not do.
        """
        self._loop = asyncio.get_running_loop()
        await self.broker.open()
        await self._advertiser.advertise()
        self.live.start()
        self._heartbeat.start()
        self._inbox.start()
        self._reaper.start()
        self._advertiser.start()
        self._puller.start()
        if self._desk is not None:
            self._desk.start()
        log.info("worker %s of node %s has joined %s", self.worker, self.config.node, self._url)

    def add_backend(self, backend: Backend) -> None:
        """Front one more LLM server; the next advert tells of it."""
        self.lanes.append(self._lane(backend))

    def hurry(self) -> None:
        """While it stops: wait for running jobs no longer, hand them back now."""
        self._puller.hurry()

    async def stop(self, *, drain_seconds: float | None = None, announce: bool = True) -> None:
        """Leave the fabric: running jobs may end within `drain_seconds`, the rest is handed back.

        Args:
            announce: tell the fabric first, so that it sends nothing more; False where it ends with us.
        """
        seconds = self.config.drain_seconds if drain_seconds is None else drain_seconds
        self._puller.stop_claiming()
        announced = announce and await self._announce()
        await self._drainer.stop()
        # Workers stop before the heartbeat, so that their leases hold while they finish.
        await self._puller.stop(drain_seconds=seconds)
        if self._desk is not None:
            await self._desk.stop()
        await self._librarian.stop()
        await self._advertiser.stop()
        if announced and not self.figures.is_told:
            await self._tell_the_rest()
        await self._reaper.stop()
        await self._inbox.stop()
        await asyncio.to_thread(self._heartbeat.stop)
        try:
            await self.broker.leave(self.worker)
        except Exception:
            log.warning("could not take leave; the advert runs out by itself", exc_info=True)
        await self.live.stop()
        await self.broker.close()
        for lane in self.lanes:
            await lane.backend.close()

    async def _announce(self) -> bool:
        """Whether the fabric has heard it."""
        return await self._drain_advert("the drain could not be announced")

    async def _tell_the_rest(self) -> None:
        """Jobs have ended since the last advert; the fabric's history should have them, too."""
        await self._drain_advert("what was counted last could not be told")

    async def _drain_advert(self, failing: str) -> bool:
        try:
            async with asyncio.timeout(_ANNOUNCE_SECONDS):
                await self._advertiser.drain()
        except Exception:
            log.warning(failing, exc_info=True)
            return False
        return True

    def _new_broker(self) -> Broker:
        return Broker(
            self._url,
            name=f"sollol-worker-{self.worker}",
            config=LinkConfig(patience_seconds=_PATIENCE_SECONDS),
            functions=self._functions,
        )

    def _lane(self, backend: Backend) -> Lane:
        is_here = True if self.config.elsewhere else None
        return Lane(backend, fixed_slots=self.config.slots, is_here=is_here)

    def _leases(self) -> dict[Lease, float]:
        return {running.lease: running.asked_at for running in list(self._puller.running.values())}

    def _call_off_from_thread(self, lease: Lease) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._puller.call_off, lease.job_id, lease.fence)

    def _more_of_node(self) -> dict[str, str]:
        if self._desk is None:
            return {}
        return {"llama": json.dumps({"worker": self.worker, **self._desk.advert()})}

    def _rewind(self) -> None:
        self._inbox.rewind()

    def _on_change(self) -> None:
        if self._advertiser.last_hardware is not None:
            self._puller.vram_mib = self._advertiser.last_hardware.vram_total_mib
        self._puller.controls = self._advertiser.controls
        self._drainer.obey(self._advertiser.controls)
        self._puller.wake()

    def _on_entry(self, entry: EntryFields) -> None:
        kind = entry[b"t"].decode()
        if kind == Entry.BELL:
            self._puller.wake()
        elif kind == Entry.CANCEL:
            self._puller.call_off(entry[b"j"].decode(), int(entry[b"f"]))
        elif kind == Entry.CONTROL:
            self._advertiser.advertise_soon()
        elif kind == Entry.CALL:
            self._librarian.on_entry(entry)
        elif kind == Entry.ORDER and self._desk is not None:
            self._desk.on_entry(entry)
