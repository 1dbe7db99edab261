"""A TCP proxy before Redis: it can lose the reply to one chosen command, delay, swallow, reset and cut."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import hiredis

_CHUNK = 64 * 1024


@dataclass(eq=False, slots=True)
class _Line:
    """One client's connection, and the commands on it whose replies have not come."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    unanswered: deque[str] = field(default_factory=deque)
    left_bytes: float = math.inf

    def cut(self) -> None:
        """End it as a dead host's is ended: by a reset, with nothing flushed."""
        self.client.transport.abort()
        self.server.transport.abort()


class ChaosProxy:
    """Listens on a loopback port and hands on to a Redis, faults included. Faults may be set at any time.

    Args:
        socket: the Unix socket of the Redis.

    Attributes:
        losses: how many replies to lose, by verb ("claim") or command ("XREAD"): the server has done what it was
            told, then the connection is reset and the reply is gone.
        loss_rates: the share of replies to lose besides, by verb or command.
        lost: how many have been lost so far; as "bytes", how many connections were cut at a byte.
        delay_seconds: added each way.
        up_flows, down_flows: cleared = a black hole: what is sent stays here, and no error tells of it.
        cut_after_bytes: each new connection is reset once so much has come from the server, drawn from here;
            None = never.
    """

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.losses: Counter[str] = Counter()
        self.loss_rates: dict[str, float] = {}
        self._chance = random.Random(1)
        self.lost: Counter[str] = Counter()
        self.delay_seconds = 0.0
        self.up_flows, self.down_flows = asyncio.Event(), asyncio.Event()
        self.up_flows.set()
        self.down_flows.set()
        self.cut_after_bytes: range | None = None

    @property
    def url(self) -> str:
        """Where clients find it, once entered."""
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset_all(self) -> int:
        """Reset all connections; how many there were."""
        lines = list(self._lines)
        for line in lines:
            line.cut()
        return len(lines)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(writer, to_server)
        if self.cut_after_bytes is not None:
            line.left_bytes = self._chance.choice(self.cut_after_bytes)
        self._lines.add(line)
        pumps = [
            asyncio.create_task(self._up(line, reader)),
            asyncio.create_task(self._down(line, from_server)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._lines.discard(line)
            line.cut()

    async def _up(self, line: _Line, reader: asyncio.StreamReader) -> None:
        commands = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    line.unanswered.append(_name(command))
                await self._hold(self.up_flows)
                line.server.write(data)
                await line.server.drain()

    async def _down(self, line: _Line, reader: asyncio.StreamReader) -> None:
        replies = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                replies.feed(data)
                while replies.gets() is not False:
                    if self._is_to_be_lost(line.unanswered.popleft()):
                        return
                await self._hold(self.down_flows)
                is_last = len(data) >= line.left_bytes
                line.client.write(data[: int(line.left_bytes)] if is_last else data)
                await line.client.drain()
                line.left_bytes -= len(data)
                if is_last:
                    self.lost["bytes"] += 1
                    return

    def _is_to_be_lost(self, name: str) -> bool:
        if self.losses[name] > 0:
            self.losses[name] -= 1
        elif self._chance.random() >= self.loss_rates.get(name, 0.0):
            return False
        self.lost[name] += 1
        return True

    async def _hold(self, flows: asyncio.Event) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        await flows.wait()


def _name(command: list[bytes]) -> str:
    """The verb of one of our functions, else the command's own name."""
    name = command[0].decode().upper()
    return command[1].decode().rpartition("_")[2] if name == "FCALL" else name
