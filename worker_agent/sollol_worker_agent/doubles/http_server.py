"""A small HTTP/1.1 server for doubles: keep-alive, chunked streams, and it notices when a client leaves.

Only what a test needs; it trusts its clients and must never face a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_REASONS = {
    200: "OK",
    201: "Created",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request, whole."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Reply:
    """How a handler answers; it calls `json`, `text`, or `line` and `end`, or `cut`."""

    writer: asyncio.StreamWriter
    is_head: bool = False
    is_streaming: bool = False
    is_cut: bool = field(default=False)

    async def json(
        self, status: int, body: object, content_type: str = "application/json; charset=utf-8"
    ) -> None:
        """Answer with one JSON object."""
        await self._whole(status, as_json(body), content_type)

    async def text(self, status: int, body: str) -> None:
        """Answer with plain text."""
        await self._whole(status, body.encode(), "text/plain")

    async def line(self, body: object, content_type: str = "application/x-ndjson") -> None:
        """Send one more line of JSON; the first brings the headers with it."""
        await self.raw(as_json(body) + b"\n", content_type)

    async def raw(self, data: bytes, content_type: str) -> None:
        """Send one more chunk of bytes; the first brings the headers with it."""
        if not self.is_streaming:
            self.is_streaming = True
            self.writer.write(_head(200, content_type) + b"Transfer-Encoding: chunked\r\n\r\n")
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        """End a stream as it should be."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def cut(self) -> None:
        """Break the connection off, as a killed server does."""
        self.is_cut = True
        self.writer.transport.abort()

    async def _whole(self, status: int, body: bytes, content_type: str) -> None:
        head = _head(status, content_type) + b"Content-Length: %d\r\n\r\n" % len(body)
        self.writer.write(head if self.is_head else head + body)
        await self.writer.drain()


Handler = Callable[[Request, Reply], Awaitable[None]]


class HttpServer:
    """Listens on a free loopback port and hands each request to `handler`.

    When the client leaves, the handler is cancelled.

    Attributes:
        url: where it listens, once started.
        connections: how many connections have been accepted so far.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.connections = 0

    async def start(self, port: int = 0) -> None:
        """Listen; port 0 takes a free one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close the port and all connections at once, as a killed server does."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while (request := await _read_request(reader)) is not None:
                    reply = Reply(writer, is_head=request.method == "HEAD")
                    if not await self._answer(request, reply, reader) or reply.is_cut:
                        break
        finally:
            writer.transport.abort()

    async def _answer(self, request: Request, reply: Reply, reader: asyncio.StreamReader) -> bool:
        """Whether the client is still there afterwards."""
        work = asyncio.ensure_future(self._handler(request, reply))
        # Clients here do not pipeline: whatever is read before the answer is done, is the end.
        departure = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, departure}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return False
            await work
            return True
        finally:
            for task in (work, departure):
                task.cancel()
            await asyncio.gather(work, departure, return_exceptions=True)


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *rest = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in rest if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    body = b""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return Request(method, target.partition("?")[0], headers, body)


def as_json(body: Any) -> bytes:
    """JSON as Go writes it: compact, with `<`, `>` and `&` escaped."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode()


def _head(status: int, content_type: str) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nContent-Type: {content_type}\r\n".encode()
