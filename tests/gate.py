"""A gate before an LLM server: it lets through so many events of its streams, and holds the rest until told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

# Where llama-server ends a server-sent event.
_EVENT_END = b"\n\n\r\n"


class Gate:
    """A TCP proxy to the server at `url`.

    Attributes:
        allowed: events of streams that may still pass; None = all. Whatever is no stream passes.
        passed: events that have.
    """

    def __init__(self, url: str, allowed: int | None) -> None:
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port
        self.allowed = allowed
        self.passed = 0
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def allow(self, more: int | None) -> None:
        """Let so many events more pass; None = all."""
        async with self._changed:
            self.allowed = None if more is None or self.allowed is None else self.allowed + more
            self._changed.notify_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there = await asyncio.open_connection(self._host, self._port)
            up = asyncio.create_task(_copy(reader, there[1]))
            down = asyncio.create_task(self._copy_down(there[0], writer))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (up, down):
                    each.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
                there[1].close()
        except OSError:
            pass  # the server is gone, and so is the connection to it
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _copy_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rest, streams = b"", False
        while data := await reader.read(65536):
            rest += data
            streams = streams or b"text/event-stream" in rest
            while streams and _EVENT_END in rest:
                event, _, rest = rest.partition(_EVENT_END)
                await self._wait()
                writer.write(event + _EVENT_END)
                await writer.drain()
            if not streams:
                writer.write(rest)
                await writer.drain()
                rest = b""
        writer.write(rest)

    async def _wait(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.allowed is None or self.passed < self.allowed)
            self.passed += 1


@asynccontextmanager
async def gate(url: str, allowed: int | None) -> AsyncIterator[Gate]:
    """A running Gate."""
    made = Gate(url, allowed)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
