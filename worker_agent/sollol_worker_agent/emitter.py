"""Sends an answer's pieces while it is made: of a stream each, of any other long answer what is new each second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sollol_broker.broker import Broker, Lease
from sollol_broker.codec import pack
from sollol_broker.outcome import Seam

from .answer import joined
from .backends.protocol import Piece

# Nobody reads along where an answer is not streamed: its pieces are kept for the case that this worker dies, and that
# is worth something only where much would be lost.
_FIRST_KEPT_SECONDS = 3.0
_KEPT_SECONDS = 1.0


class Emitter:
    """The outgoing pieces of one job. What comes while a write is in flight goes out in the next.

    What was written is kept, since a failover may lose it: then it is written again, and no reader finds a gap.

    Args:
        streams: whether somebody reads along: then the first piece leaves at once.
        on_lost: called once when Redis says that the job is no longer ours.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        broker: Broker,
        lease: Lease,
        *,
        streams: bool,
        on_lost: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._lease = lease
        self._streams = streams
        self._on_lost = on_lost
        self._clock = clock
        self._pending: list[Piece] = []
        self._at = 0
        self._seam: Seam | None = None
        self._written: list[tuple[bytes, Seam | None]] = []
        self._due_at = 0.0 if streams else clock() + _FIRST_KEPT_SECONDS
        self._sending: asyncio.Task[None] | None = None

    def go_on(self, seam: Seam) -> None:
        """Before the first piece: say that they go on with what earlier attempts have said."""
        self._seam, self._at = seam, seam.offset
        self._start()

    def add(self, piece: Piece) -> None:
        """Send a piece, as soon as the line is free and it is due."""
        self._pending.append(piece)
        if self._streams or self._clock() >= self._due_at:
            self._start()

    async def drain(self) -> None:
        """Wait until all that is due has been sent, or `stop` was called.

        Raises:
            SollolError: Redis could not be reached.
        """
        if (sending := self._sending) is None:
            return
        # Not awaited itself: it may be stopped, which is no cancellation of ours, and ours need not stop it.
        await asyncio.wait({sending})
        if not sending.cancelled():
            sending.result()

    async def flush(self) -> None:
        """Send all there is: this attempt ends without an answer, and the next one goes on.

        Raises:
            SollolError: Redis could not be reached.
        """
        await self.drain()
        if self._pending:
            self._start()
            await self.drain()

    def stop(self) -> None:
        """Send nothing more."""
        self._pending.clear()
        if self._sending is not None:
            self._sending.cancel()

    def _start(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        seq = len(self._written)
        while self._pending or self._seam is not None or seq < len(self._written):
            if seq == len(self._written):
                self._written.append(self._next())
            data, seam = self._written[seq]
            reply = await self._broker.emit(self._lease, seq + 1, data, seam=seam)
            if reply == 0:
                self._pending.clear()
                self._on_lost()
                return
            seq = seq + 1 if reply > 0 else -reply - 1
            if not self._streams and seq == len(self._written):
                return

    def _next(self) -> tuple[bytes, Seam | None]:
        """All that is pending, as one piece."""
        pieces, self._pending = self._pending, []
        seam, self._seam = self._seam, None
        self._due_at = self._clock() + _KEPT_SECONDS
        data = joined(pieces)
        if self._at:
            data["at"] = self._at
        if seam is not None:
            data["seam"] = {name: getattr(seam, name) for name in Seam.__slots__}
        self._at += len(data.get("text", ""))
        return pack(data), seam
