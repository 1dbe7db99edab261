"""The end of the live log, kept in memory for all who look at it: one read a second, however many lines come."""

from __future__ import annotations

from collections import deque

from sollol_broker.broker import Broker
from sollol_broker.log_entry import Level, LogEntry, LogFilter, from_flat
from sollol_broker.told import text

_MOST_LINES = 2000
_MOST_TROUBLES = 200
_AT_ONCE = 1000
_SHOWN = 200
_SHOWN_TROUBLES = 12
_HOUR = 3600.0


class LogTail:
    """The last lines of one fabric's live log."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._lines: deque[LogEntry] = deque(maxlen=_MOST_LINES)
        self._troubles: deque[LogEntry] = deque(maxlen=_MOST_TROUBLES)
        self._after = "0-0"
        self._connections = 0

    async def read(self) -> None:
        """Take in what was written since the last time.

        Raises:
            BrokerUnavailable, NotAllowed
        """
        link = self._broker.link
        is_other, self._connections = link.connections != self._connections, link.connections
        start = "-" if is_other else f"({self._after}"
        # From the end: of a flood the latest lines are shown, and those between are left out.
        rows = await link.call("XREVRANGE", self._broker.keys.log, "+", start, "COUNT", _AT_ONCE)
        if is_other and (not rows or _place(text(rows[0][0])) < _place(self._after)):
            # Another server, or an older copy; its clock may be behind.
            self._lines.clear()
            self._troubles.clear()
            self._after = "0-0"
        for entry_id, flat in reversed(rows):
            line = from_flat(entry_id, flat)
            if _place(line.id) <= _place(self._after):
                continue
            self._after = line.id
            self._lines.append(line)
            if Level.named(line.level) > Level.INFO:
                self._troubles.append(line)

    def last(self, wanted: LogFilter, words: str = "") -> tuple[list[LogEntry], int]:
        """The last lines that are wanted, the latest first; and how many were looked at."""
        found = []
        for line in reversed(self._lines):
            if wanted.wants(line) and (not words or _mentions(line, words)):
                found.append(line)
                if len(found) == _SHOWN:
                    break
        return found, len(self._lines)

    def troubles(self, now: float) -> list[LogEntry]:
        """Warnings and errors of the last hour, the latest first."""
        recent = [line for line in reversed(self._troubles) if line.at > now - _HOUR]
        return recent[:_SHOWN_TROUBLES]

    def words(self) -> tuple[list[str], list[str]]:
        """The nodes and the applications that lines are about."""
        nodes = {line.node for line in self._lines if line.node}
        apps = {line.app for line in self._lines if line.app}
        return sorted(nodes)[:_SHOWN], sorted(apps)[:_SHOWN]


def _place(entry_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split("-"))


def _mentions(line: LogEntry, words: str) -> bool:
    return words in line.event.lower() or any(words in str(value).lower() for value in line.fields.values())
