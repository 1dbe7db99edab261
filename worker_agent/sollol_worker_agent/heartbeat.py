"""The heartbeat: keeps the leases of running jobs, from a thread that a busy event loop cannot starve."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

from sollol_broker.broker import Broker, Lease
from sollol_broker.errors import SollolError

log = logging.getLogger(__name__)

# Two beats may be lost and the lease still holds.
_BEATS_PER_LEASE = 3
# A worker that could not renew for this share of its lease stops by itself: from then on somebody else
# may already have the job, and the backend would work for nothing.
_GIVE_UP_SHARE = 0.8


class Heartbeat:
    """Renews all leases every third of their length.

    Args:
        make_broker: builds a connection of its own; called in the heartbeat's thread.
        leases: what runs now; called from that thread, so it must give a finished copy.
        call_off: called from that thread with the id and fence of each job that is no longer ours.
    """

    def __init__(
        self,
        *,
        make_broker: Callable[[], Broker],
        lease_seconds: float,
        leases: Callable[[], Sequence[Lease]],
        call_off: Callable[[Lease], None],
    ) -> None:
        self._make_broker = make_broker
        self._lease_seconds = lease_seconds
        self._leases = leases
        self._call_off = call_off
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sollol-heartbeat", daemon=True)
        # Monotonic times of the last good renewal (or first sight), by lease.
        self._kept_at: dict[Lease, float] = {}

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating; leases still held run out by themselves. Stop the workers first."""
        self._stopping.set()
        self._thread.join(timeout=self._lease_seconds)

    def _run(self) -> None:
        asyncio.run(self._loop())

    async def _loop(self) -> None:
        broker = self._make_broker()
        beat = self._lease_seconds / _BEATS_PER_LEASE
        try:
            while not self._stopping.is_set():
                await self._beat(broker, beat)
                # The event is a thread's: waiting for it in short steps keeps this loop free of locks.
                until = time.monotonic() + beat
                while time.monotonic() < until and not self._stopping.is_set():
                    await asyncio.sleep(min(0.1, beat))
        finally:
            await broker.close()

    async def _beat(self, broker: Broker, beat: float) -> None:
        now = time.monotonic()
        leases = list(self._leases())
        self._kept_at = {lease: self._kept_at.get(lease, now) for lease in leases}
        if not leases:
            return
        try:
            lost = set(await broker.renew(leases, round(self._lease_seconds * 1000), patience_seconds=beat))
        except SollolError as error:
            log.warning("heartbeat: %s", error)
            self._give_up_old()
            return
        for lease in leases:
            if lease.job_id in lost:
                log.info("job %s: its lease is lost", lease.job_id)
                self._call_off(lease)
            else:
                self._kept_at[lease] = now

    def _give_up_old(self) -> None:
        too_old = time.monotonic() - self._lease_seconds * _GIVE_UP_SHARE
        for lease, kept_at in self._kept_at.items():
            if kept_at < too_old:
                log.warning("job %s: could not be renewed in time, stopping it", lease.job_id)
                self._call_off(lease)
