"""The live log's reading end: the last lines, and what comes after them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from .broker import Broker
from .log_entry import LogEntry, LogFilter, from_flat

# Shorter than the link's stall time, or a quiet log would look like a dead connection.
_BLOCK_MS = 2000
_PAGE = 1000
EVERYTHING = LogFilter()


class LogReader:
    """Reads the live log of one fabric."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._key = broker.keys.log

    async def last(self, count: int = 100, wanted: LogFilter = EVERYTHING) -> list[LogEntry]:
        """The last `count` lines that are wanted, the latest at the end."""
        found: list[LogEntry] = []
        end = "+"
        while len(found) < count:
            page = count if wanted == EVERYTHING else _PAGE
            rows = await self._broker.link.call("XREVRANGE", self._key, end, "-", "COUNT", page)
            found += [entry for entry in _entries(rows) if wanted.wants(entry)]
            if len(rows) < page:
                break
            end = f"({rows[-1][0].decode()}"
        return found[:count][::-1]

    async def follow(self, wanted: LogFilter = EVERYTHING, *, after: str = "") -> AsyncIterator[LogEntry]:
        """What is written from now on, or behind the entry `after`, as it comes: one blocking read on a connection of
        its own.

        It goes on when Redis has been away; lines that a failover has lost are lost.
        """
        link = self._broker.blocking_link()
        try:
            at, connections = after or await self._newest(), 0
            while True:
                reply = await link.call("XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK_MS, "STREAMS", self._key, at)
                if link.connections != connections:
                    # Another server may have less of the log, and a clock behind: it would hide what is new there.
                    if connections and _order(newest := await self._newest()) < _order(at):
                        at = newest
                    connections = link.connections
                for entry in _entries(reply[0][1]) if reply else ():
                    at = entry.id
                    if wanted.wants(entry):
                        yield entry
        finally:
            await link.close()

    async def _newest(self) -> str:
        rows = await self._broker.link.call("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        return rows[0][0].decode() if rows else "0-0"


def _entries(rows: Any) -> list[LogEntry]:
    return [from_flat(entry_id, flat) for entry_id, flat in rows]


def _order(entry_id: str) -> tuple[int, int]:
    moment, _, number = entry_id.partition("-")
    return int(moment), int(number or 0)
