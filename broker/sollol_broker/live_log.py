"""The live log's writing end: what a process has to say, in a bounded buffer and from there in batches to Redis.

Nobody ever waits for it. Where Redis is away, slow or full, lines are left out and counted; the job path does not
notice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

from .broker import Broker
from .errors import InvalidJob
from .log_entry import Level, LogEntry, Sampler, to_flat
from .periodic import Periodic
from .wire import Wire

# Info lines, one in ten of them. Errors and warnings always.
USUAL_SAMPLE = 0.1
# Short enough to look live, and 2 small batches a second cost nothing.
_FLUSH_SECONDS = 0.5
# Of one batch, and so twice that a second.
_MOST_AT_ONCE = 100
_MOST_KEPT = 1000
# Info gives way long before a warning has to.
_MOST_INFO_KEPT = 200
# Entries in Redis, 2 to 3 MB.
_LOG_MAXLEN = 10_000
# A user whose rights are older than the log is not asked for it at every batch.
_REFUSED_SECONDS = 60.0
_LAST_WORD_SECONDS = 1.0
_PACKAGES = ("sollol", "sollol_broker", "sollol_client", "sollol_worker_agent", "sollol_coordinator")


def sample_of(text: str) -> float | None:
    """What a command line says of the live log: a share from 0 to 1, or None for "off".

    Raises:
        InvalidJob: it is neither.
    """
    if text.strip().lower() == "off":
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidJob(
            f"{text!r}: give the share of info lines for the live log, from 0 to 1, or off",
            field="log_sample",
        )
    return share


class LiveLog:
    """Writes what one process has to say to the fabric's live log. Any thread may speak.

    Args:
        source: what it is: worker, coordinator, gateway or client. process: which one. node: its machine.
        app: whose lines these are where they do not say.
        sample: share of the info lines; None = nothing is written at all.

    Attributes:
        written, dropped: lines that reached Redis, and that did not since the buffer was full or Redis away.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        source: str,
        process: str,
        node: str = "",
        app: str = "",
        sample: float | None = USUAL_SAMPLE,
    ) -> None:
        self._broker = broker
        self._source = source
        self._process = process
        self._node = node
        self._app = app
        self._sampler = None if sample is None else Sampler(sample)
        self._waiting: deque[tuple[LogEntry, float]] = deque()
        self._turns = Periodic(self._turn, name="live log", seconds=_FLUSH_SECONDS)
        self._handler: _Handler | None = None
        self._not_before = 0.0
        self._untold = 0
        self.written = 0
        self.dropped = 0

    def note(self, level: Level, event: str, *, app: str = "", kind: str = "", **fields: Any) -> None:
        """Say that something has happened; never waits, never raises.

        Args:
            app: the application that it is about.
            kind: what it counts as when one in ten is taken; "" = `event`.
            fields: facts beside it: plain values, never what somebody asked or was answered.
        """
        if self._sampler is None:
            return
        now = time.monotonic()
        left_out = self._sampler.takes(level, kind or event, now)
        if left_out is None:
            return
        if len(self._waiting) >= (_MOST_KEPT if level > Level.INFO else _MOST_INFO_KEPT):
            self._drop(1)
            return
        entry = LogEntry(
            id="",
            at=0.0,
            level=level.word,
            source=self._source,
            process=self._process,
            node=self._node,
            app=app or self._app,
            event=event,
            fields=fields,
            left_out=left_out,
        )
        self._waiting.append((entry, now))

    def start(self) -> None:
        """Begin to write, in the running event loop."""
        if self._sampler is not None:
            self._turns.start()

    def capture(self) -> None:
        """From now on also take what SOLLOL's own modules log in this process, until `stop`."""
        if self._sampler is not None and self._handler is None:
            self._handler = _Handler(self)
            for name in _PACKAGES:
                logging.getLogger(name).addHandler(self._handler)

    async def stop(self) -> None:
        """Write what is left, if Redis takes it at once, and end; the broker must still be open."""
        if self._handler is not None:
            for name in _PACKAGES:
                logging.getLogger(name).removeHandler(self._handler)
            self._handler = None
        if not self._turns.is_started:
            return
        await self._turns.stop()
        try:
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                while self._waiting and await self._flush():
                    pass
        except TimeoutError:
            pass

    async def _turn(self) -> None:
        await self._flush()

    async def _flush(self) -> bool:
        """Write one batch; whether it got through."""
        # Only over a connection that stands: the others, who need it, make it again.
        wire = self._broker.link.ready()
        if wire is None or not (self._waiting or self._untold) or time.monotonic() < self._not_before:
            return False
        now = time.monotonic()
        batch: list[tuple[str | int, ...]] = []
        while self._waiting and len(batch) < _MOST_AT_ONCE:
            entry, noted_at = self._waiting.popleft()
            batch.append(to_flat(entry, ago_ms=(now - noted_at) * 1000))
        untold, self._untold = self._untold, 0
        if untold:
            batch.append(to_flat(self._lost(untold), ago_ms=0))
        return await self._send(wire, batch)

    async def _send(self, wire: Wire, batch: list[tuple[str | int, ...]]) -> bool:
        key = self._broker.keys.log
        replies = await asyncio.gather(
            *(wire.send("XADD", key, "MAXLEN", "~", _LOG_MAXLEN, "*", *flat) for flat in batch),
            return_exceptions=True,
        )
        errors = [reply for reply in replies if isinstance(reply, RedisError | OSError)]
        self.written += len(replies) - len(errors)
        self._drop(len(errors))
        if any(isinstance(error, NoPermissionError) for error in errors):
            self._not_before = time.monotonic() + _REFUSED_SECONDS
        return not errors

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def _lost(self, lines: int) -> LogEntry:
        return LogEntry(
            id="",
            at=0.0,
            level=Level.WARNING.word,
            source=self._source,
            process=self._process,
            node=self._node,
            app=self._app,
            event="lines of this process are missing here: too many came, or Redis did not take them",
            fields={"lines": lines},
        )


class _Handler(logging.Handler):
    """Hands records of SOLLOL's modules to the live log. Their texts carry no prompt and no password."""

    def __init__(self, live: LiveLog) -> None:
        super().__init__(logging.INFO)
        self._live = live

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; what cannot be worded is no reason to fail."""
        try:
            text = record.getMessage()
        except Exception:
            return
        error = record.exc_info[1] if record.exc_info else None
        # Not what it says: a foreign error may quote what was asked.
        facts = {"error": type(error).__name__, "where": _where(error)} if error is not None else {}
        self._live.note(Level.of(record.levelno), text, kind=str(record.msg), **facts)


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{trace.tb_frame.f_globals.get('__name__', '')}:{trace.tb_lineno}"
