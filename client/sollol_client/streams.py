"""Reads the events of jobs that other processes submitted: one blocking read for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.inbox import EntryFields
from sollol_broker.link import Link

log = logging.getLogger(__name__)

# A job that joins while a read is under way waits for the next one at most this long.
_BLOCK_MS = 250
_COUNT = 1000


class StreamReader:
    """Follows `events:ID` of any number of jobs, from their first entry; again from there after a reconnect.

    Args:
        on_entry: called in the event loop with the job's id and the entry's fields, `e` = the entry's id among them.
    """

    def __init__(self, broker: Broker, *, on_entry: Callable[[str, EntryFields], None]) -> None:
        self._broker = broker
        self._on_entry = on_entry
        self._last: dict[str, bytes] = {}
        self._connections = 0
        self._task: asyncio.Task[None] | None = None

    def follow(self, job_id: str) -> None:
        """Read this job's events from the beginning, again if need be."""
        self._last[job_id] = b"0"
        if self._task is None or self._task.done():
            self._connections = 0
            self._task = asyncio.create_task(self._loop(self._broker.blocking_link()))

    def forget(self, job_id: str) -> None:
        """Read this job's events no more."""
        self._last.pop(job_id, None)

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _loop(self, link: Link) -> None:
        try:
            while self._last:
                try:
                    await self._turn(link)
                except SollolError as error:
                    log.warning("following jobs: %s", error)
                    await asyncio.sleep(0.5)
                if not self._last:
                    await link.close()  # a job that joins meanwhile is seen by the next look
        finally:
            await link.close()

    async def _turn(self, link: Link) -> None:
        asked = dict(self._last)
        ids = {self._broker.keys.events(job_id).encode(): job_id for job_id in asked}
        reply = await link.call(
            "XREAD", "COUNT", _COUNT, "BLOCK", _BLOCK_MS, "STREAMS", *ids, *asked.values()
        )
        if link.connections != self._connections:
            if self._connections:  # another server, or the same with an older copy
                self._last = dict.fromkeys(self._last, b"0")
            self._connections = link.connections
        for key, entries in reply or ():
            job_id = ids[key]
            for entry_id, flat in entries:
                self._on_entry(job_id, {b"e": entry_id, **dict(zip(flat[::2], flat[1::2], strict=True))})
            if self._last.get(job_id) is asked[job_id]:  # else it was forgotten, or begun anew
                self._last[job_id] = entries[-1][0]
