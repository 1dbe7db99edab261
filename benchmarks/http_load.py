"""A client that costs little: requests over kept connections, and when each piece of an answer came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit


@dataclass(slots=True)
class Timed:
    """One answer: when it began and ended, and when parts of it came; seconds of one clock.

    Attributes:
        is_whole: it has Ollama's end mark.
    """

    status: int = 0
    began: float = 0.0
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)
    bytes: int = 0
    is_whole: bool = False

    @property
    def ms(self) -> float:
        """From the request to the last byte."""
        return (self.ended - self.began) * 1000


class Connection:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect."""
        parts = urlsplit(url)
        return cls(*(await asyncio.open_connection(parts.hostname, parts.port, limit=2**22)), parts.netloc)

    async def post(self, path: str, body: Mapping[str, Any], key: str = "") -> Timed:
        """Ask once and read the whole answer."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {key}\r\n" if key else ""
        timed = Timed(began=time.perf_counter())
        self._writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        timed.status = int(lines[0].split()[1])
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if "content-length" in headers:
            timed.bytes = len(await self._reader.readexactly(int(headers["content-length"])))
        else:
            while size := int(await self._reader.readline(), 16):
                chunk = await self._reader.readexactly(size + 2)
                timed.bytes += size
                timed.pieces.append(time.perf_counter())
                timed.is_whole = b'"done":true' in chunk
            await self._reader.readline()
        timed.ended = time.perf_counter()
        return timed

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()
