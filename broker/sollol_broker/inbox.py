"""A process's inbox: the one blocking read that serves everything it waits for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from .broker import Broker
from .errors import SollolError
from .link import Link

log = logging.getLogger(__name__)

EntryFields = Mapping[bytes, bytes]

# Shorter than the link's stall time, or a quiet inbox would look like a dead connection.
_BLOCK_MS = 2000
_COUNT = 2000
# Entries that have been read are cut off in bundles: one XTRIM each would double the commands per job. But they hold
# answers, which are not to stay until a thousand more have come.
_TRIM_ENTRIES = 1000
_TRIM_BYTES = 1024 * 1024
_TRIM_SECONDS = 30.0


class Inbox:
    """Reads `inbox:WHO` and hands on each entry, in order, until stopped.

    After a reconnect it begins anew: the server may be a promoted replica with a clock behind, or have lost its last
    moments, and new entries would hide below the last one read. What was handed on is not handed on again.

    Args:
        on_entry: called in the event loop with the entry's fields; must not block, nor raise.
    """

    def __init__(self, broker: Broker, who: str, *, on_entry: Callable[[EntryFields], None]) -> None:
        self._broker = broker
        self._key = broker.keys.inbox(who)
        self._on_entry = on_entry
        self._last: bytes = b"0"
        self._handed_on: set[bytes] = set()  # and not trimmed yet
        self._read_bytes = 0
        self._trimmed_at = time.monotonic()
        self._connections = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to read, from the first entry on."""
        self._task = asyncio.create_task(self._loop(self._broker.blocking_link()))

    async def stop(self) -> None:
        """Stop reading; what is unread stays until the inbox expires."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def rewind(self) -> None:
        """Read from the beginning again: the inbox was made anew, maybe by a server with another clock."""
        self._last = b"0"

    async def _loop(self, link: Link) -> None:
        try:
            while True:
                try:
                    await self._turn(link)
                except SollolError as error:
                    log.warning("inbox: %s", error)
                    await asyncio.sleep(0.5)
                except Exception:  # a process without its inbox hears nothing more
                    log.exception("inbox: reading failed")
                    await asyncio.sleep(0.5)
        finally:
            await link.close()

    async def _turn(self, link: Link) -> None:
        last = self._last
        reply = await link.call("XREAD", "COUNT", _COUNT, "BLOCK", _BLOCK_MS, "STREAMS", self._key, last)
        if link.connections != self._connections:
            if self._connections:
                self.rewind()
            self._connections = link.connections
        if not reply:
            if self._handed_on:
                await self._trim(link)
            return
        entries = reply[0][1]
        for entry_id, flat in entries:
            if entry_id in self._handed_on:
                continue
            self._handed_on.add(entry_id)
            self._read_bytes += len(flat[-1])
            try:
                self._on_entry(dict(zip(flat[::2], flat[1::2], strict=True)))
            except Exception:  # one odd entry must not silence the process
                log.exception("inbox: an entry could not be handled")
        if self._last is last:
            self._last = entries[-1][0]
        is_late = time.monotonic() > self._trimmed_at + _TRIM_SECONDS
        if len(self._handed_on) >= _TRIM_ENTRIES or self._read_bytes >= _TRIM_BYTES or is_late:
            await self._trim(link)

    async def _trim(self, link: Link) -> None:
        self._read_bytes, self._trimmed_at = 0, time.monotonic()
        if self._last == b"0":  # about to be read anew: what was handed on has to be known
            return
        moment, _, number = self._last.partition(b"-")
        await link.call("XTRIM", self._key, "MINID", b"%b-%d" % (moment, int(number or 0) + 1))
        self._handed_on.clear()
