"""One connection that many callers share: requests go out together, replies come back in order.

redis-py makes the connection (login, TLS, protocol); this file only pipelines over it. A caller that is
cancelled leaves its place in the line, so no reply can ever reach another caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, DataError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

Reply = Any  # whatever RESP can carry; the door narrows it

# Small writes are joined up to this many bytes before the socket sees them.
_JOIN_BYTES = 64 * 1024


class Wire:
    """A pipelined connection. Broken once, it stays broken: make a new one.

    Args:
        connection: not yet connected; this object owns it from now on.
        stall_seconds: the line counts as dead when requests wait and no reply comes for so long. It must
            be longer than any BLOCK that is sent over it.
    """

    def __init__(self, connection: AbstractConnection, *, stall_seconds: float) -> None:
        self._connection = connection
        self._stall_seconds = stall_seconds
        self._replies = 0
        self._outbox: list[bytes] = []
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._broken: Exception | None = None

    @property
    def replies(self) -> int:
        """How many have come."""
        return self._replies

    @property
    def owes_replies(self) -> bool:
        """Whether somebody waits for one."""
        return bool(self._waiting)

    @property
    def is_broken(self) -> bool:
        """Whether the connection is lost (or was never made)."""
        return self._broken is not None or not self._tasks

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            redis.exceptions.RedisError, OSError: it did not work.
        """
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        except BaseException as error:  # a cancelled caller too: no half-open socket stays behind
            with contextlib.suppress(RedisError, OSError):
                await self._connection.disconnect(nowait=True)
            # On a Unix socket redis-py wraps what the server said: a refused login looks like a lost one.
            if isinstance(error.__cause__, RedisError):
                raise error.__cause__ from None
            raise
        loops = (self._write(), self._read(), self._watch())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    def send(self, *command: Any) -> asyncio.Future[Reply]:
        """Send a command; the future gets its reply, or redis-py's error.

        Raises:
            DataError: an argument is neither text, bytes nor a number.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if self._broken is not None:
            future.set_exception(RedisConnectionError(str(self._broken)))
            return future
        try:
            packed = pack_command(command)
        except TypeError as error:
            raise DataError(str(error)) from None
        self._outbox.append(packed)
        self._waiting.append(future)
        self._wake.set()
        return future

    async def close(self) -> None:
        """Disconnect; whoever still waits gets a connection error."""
        self._break(RedisConnectionError("the connection was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                chunks, self._outbox = self._outbox, []
                await self._connection.send_packed_command(_joined(chunks), check_health=False)
        except (RedisError, OSError) as error:
            self._break(error)

    async def _read(self) -> None:
        connection, waiting = self._connection, self._waiting
        try:
            while True:
                reply: Reply
                try:
                    reply = await connection.read_response(
                        disable_decoding=True, timeout=math.inf, disconnect_on_error=False
                    )
                except ResponseError as error:
                    reply = error
                self._replies += 1
                future = waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (RedisError, OSError, IndexError) as error:
            self._break(error)

    async def _watch(self) -> None:
        # One look per stall_seconds / 2 for the whole line is far cheaper than a timer for each request.
        silent_looks, seen = 0, self._replies
        while self._broken is None:
            await asyncio.sleep(self._stall_seconds / 2)
            silent_looks = silent_looks + 1 if self._waiting and self._replies == seen else 0
            seen = self._replies
            if silent_looks > 2:  # three looks are two halves apart
                self._break(RedisTimeoutError(f"no reply for {self._stall_seconds:.0f} s"))
                await self._connection.disconnect(nowait=True)

    def _break(self, error: Exception) -> None:
        if self._broken is None:
            self._broken = error
        # A server that wants a login first says so with an error that redis-py takes for a lost connection.
        kind = AuthenticationError if isinstance(self._broken, AuthenticationError) else RedisConnectionError
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(kind(str(self._broken)))


def _joined(chunks: list[bytes]) -> list[bytes]:
    """Join small chunks; a large one (a picture) is passed as it is, not copied."""
    joined: list[bytes] = []
    small: list[bytes] = []
    for chunk in chunks:
        if len(chunk) < _JOIN_BYTES:
            small.append(chunk)
            continue
        joined.append(b"".join(small))
        joined.append(chunk)
        small = []
    joined.append(b"".join(small))
    return joined
