"""A wire whose replies come when what they report is safe: when a replica has it, too."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from .wire import Reply, Wire

# Shorter than a link's stall time, or a slow replica would look like a dead server.
_CONFIRM_MS = 1000

_UNCONFIRMED = (
    "no replica has confirmed it in time: are there any, and do they keep up? Without, durability=local"
)


class Unconfirmed(RedisError):
    """The server has done it, and would lose it with itself. Whether it stays is not known: repeat it."""


class SureWire(Wire):
    """A wire whose replies come when what they report is safe.

    One question to the server confirms all that was sent before it, and there is one at a time: the busier the wire,
    the more each one confirms. A command that says "done already" must write something, or there is nothing to ask for.
    """

    def __init__(self, connection: AbstractConnection, *, stall_seconds: float) -> None:
        super().__init__(connection, stall_seconds=stall_seconds)
        self._unasked: list[tuple[asyncio.Future[Reply], asyncio.Future[Reply]]] = []
        self._is_asking = False

    def send(self, *command: Any) -> asyncio.Future[Reply]:
        """Send a command; the future gets its reply once that is safe, redis-py's error, or Unconfirmed."""
        reply = super().send(*command)
        loop = asyncio.get_running_loop()
        sure: asyncio.Future[Reply] = loop.create_future()
        self._unasked.append((reply, sure))
        if not self._is_asking:
            self._is_asking = True
            loop.call_soon(self._ask)  # after all that this turn of the loop sends
        return sure

    def _ask(self) -> None:
        group, self._unasked = self._unasked, []
        confirmed = super().send("WAIT", 1, _CONFIRM_MS)
        confirmed.add_done_callback(partial(self._settle, group))

    def _settle(
        self,
        group: list[tuple[asyncio.Future[Reply], asyncio.Future[Reply]]],
        confirmed: asyncio.Future[Reply],
    ) -> None:
        doubt = None if confirmed.cancelled() else confirmed.exception()
        if doubt is None and confirmed.result() < 1:
            doubt = Unconfirmed(_UNCONFIRMED)
        for reply, sure in group:
            error = reply.exception() or doubt
            if sure.done():
                continue
            if error is not None:
                sure.set_exception(error)
            else:
                sure.set_result(reply.result())
        if self._unasked:
            self._ask()
        else:
            self._is_asking = False
