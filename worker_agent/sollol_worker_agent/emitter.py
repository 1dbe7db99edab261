"""Sends an answer's pieces while it is made: the first at once, then one write in flight at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sollol_broker.broker import Broker, Lease
from sollol_broker.codec import pack

from .answer import joined
from .backends.protocol import Piece


class Emitter:
    """The outgoing stream of one job. What comes while a write is in flight goes out in the next.

    Args:
        on_lost: called once when Redis says that the job is no longer ours.
    """

    def __init__(self, broker: Broker, lease: Lease, *, on_lost: Callable[[], None]) -> None:
        self._broker = broker
        self._lease = lease
        self._on_lost = on_lost
        self._pending: list[Piece] = []
        self._seq = 0
        self._sending: asyncio.Task[None] | None = None

    def add(self, piece: Piece) -> None:
        """Send a piece, as soon as the line is free."""
        self._pending.append(piece)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def drain(self) -> None:
        """Wait until all has been sent.

        Raises:
            SollolError: Redis could not be reached.
        """
        if self._sending is not None:
            await self._sending

    def stop(self) -> None:
        """Send nothing more."""
        self._pending.clear()
        if self._sending is not None:
            self._sending.cancel()

    async def _send(self) -> None:
        while self._pending:
            pieces, self._pending = self._pending, []
            self._seq += 1
            if not await self._broker.emit(self._lease, self._seq, pack(joined(pieces))):
                self._pending.clear()
                self._on_lost()
                return
