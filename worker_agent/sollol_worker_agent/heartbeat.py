"""The heartbeat: keeps the leases of running jobs, from a thread that a busy event loop cannot starve."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

from sollol_broker.broker import Broker, Lease
from sollol_broker.errors import SollolError

log = logging.getLogger(__name__)

# Two beats may be lost and the lease still holds.
_BEATS_PER_LEASE = 3
# A worker that could not renew for this share of its lease stops by itself: from then on somebody else
# may already have the job, and the backend would work for nothing.
_GIVE_UP_SHARE = 0.8
# How often it looks whether a lease has to be given up, and whether it shall stop.
_STEP_SECONDS = 0.1
# A renewal that failed is tried again after this share of a beat.
_AGAIN_SHARE = 0.25


class Heartbeat:
    """Renews all leases every third of their length.

    Args:
        make_broker: builds a connection of its own; called in the heartbeat's thread.
        leases: what runs now, and since when at most (monotonic); called from that thread, so it must
            give a finished copy.
        call_off: called from that thread with the id and fence of each job that is no longer ours.
    """

    def __init__(
        self,
        *,
        make_broker: Callable[[], Broker],
        lease_seconds: float,
        leases: Callable[[], Mapping[Lease, float]],
        call_off: Callable[[Lease], None],
    ) -> None:
        self._make_broker = make_broker
        self._lease_seconds = lease_seconds
        self._lease_ms = round(lease_seconds * 1000)
        self._leases = leases
        self._call_off = call_off
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sollol-heartbeat", daemon=True)
        # Monotonic times of the last good renewal, or of the claim, by lease.
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
                has_renewed = await self._beat(broker, beat)
                until = time.monotonic() + (beat if has_renewed else beat * _AGAIN_SHARE)
                while time.monotonic() < until and not self._stopping.is_set():
                    self._give_up_old()
                    await asyncio.sleep(min(_STEP_SECONDS, beat))
        finally:
            await broker.close()

    async def _beat(self, broker: Broker, beat: float) -> bool:
        """Renew once; whether that worked."""
        now = time.monotonic()
        leases = self._leases()
        self._kept_at = {lease: self._kept_at.get(lease, since) for lease, since in leases.items()}
        if not leases:
            return True
        try:
            # A Redis that hangs gives no error, and giving up must not wait for one.
            async with asyncio.timeout(max(_STEP_SECONDS, min(beat, self._oldest_ends_at() - now))):
                lost = set(await broker.renew(list(leases), self._lease_ms, patience_seconds=beat))
        except TimeoutError:
            log.warning("heartbeat: Redis at %s does not reply", broker.url)
            return False
        except SollolError as error:
            log.warning("heartbeat: %s", error)
            return False
        for lease in leases:
            if lease.job_id in lost:
                log.info("job %s: its lease is lost", lease.job_id)
                self._call_off(lease)
            else:
                self._kept_at[lease] = now
        return True

    def _oldest_ends_at(self) -> float:
        return min(self._kept_at.values()) + self._lease_seconds * _GIVE_UP_SHARE

    def _give_up_old(self) -> None:
        too_old = time.monotonic() - self._lease_seconds * _GIVE_UP_SHARE
        for lease, kept_at in self._kept_at.items():
            if kept_at <= too_old:
                log.warning("job %s: could not be renewed in time, stopping it", lease.job_id)
                self._kept_at[lease] = math.inf  # told once
                self._call_off(lease)
