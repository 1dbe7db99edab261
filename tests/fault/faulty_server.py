"""An LLM server that lists its model like a good one and then fails at every chat, in one of eight ways."""

from __future__ import annotations

import asyncio
import json
import time
from enum import StrEnum
from types import TracebackType
from typing import Any, Literal, Self

from sollol_worker_agent.doubles.http_server import HttpServer, Reply, Request

Make = Literal["ollama", "llama"]
_DRIP_SECONDS = 0.05


class Behaviour(StrEnum):
    """How it fails."""

    HANGS = "hangs"  # takes the request and says nothing
    BREAKS = "breaks"  # 500
    GARBAGE = "garbage"  # a stream of lines that mean nothing
    TRUNCATED = "truncated"  # an orderly end in the middle of a line
    DRIPS = "drips"  # a byte now and then, never a whole line in time
    CUT = "cut"  # a reset in the middle of a token
    NO_END_MARK = "no end mark"  # the whole text, and an orderly end without the protocol's own
    REFUSES = "refuses"  # no connection any more


class FaultyServer:
    """A server of either make on a free loopback port, with the model "tiny" and four slots.

    Args:
        words: what it says of the answer, where it says something.

    Attributes:
        asked: how many chats it has been asked for.
        held_seconds: how long each of them kept it busy.
    """

    def __init__(self, make: Make, behaviour: Behaviour, words: list[str]) -> None:
        self._make = make
        self._behaviour = behaviour
        self._words = words
        self._server = HttpServer(self._handle)
        self.asked = 0
        self.held_seconds: list[float] = []

    @property
    def url(self) -> str:
        """What a worker's --backend takes."""
        return f"{self._make}+{self._server.url}"

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop()

    async def begin_to_refuse(self) -> None:
        """Close the port, if that is how it fails."""
        if self._behaviour is Behaviour.REFUSES:
            await self._server.stop()

    async def _handle(self, request: Request, reply: Reply) -> None:
        if request.path in ("/api/chat", "/v1/chat/completions"):
            self.asked += 1
            began_at = time.monotonic()
            try:
                await self._fail(reply)
            finally:
                self.held_seconds.append(time.monotonic() - began_at)
            return
        lists = _LISTS[self._make]
        await reply.json(
            200 if request.path in lists else 404, lists.get(request.path, {"error": "no such path"})
        )

    async def _fail(self, reply: Reply) -> None:
        match self._behaviour:
            case Behaviour.HANGS:
                await asyncio.Event().wait()
            case Behaviour.BREAKS:
                await reply.json(500, {"error": "CUDA error: an illegal memory access was encountered"})
            case Behaviour.GARBAGE:
                await self._say(reply, b"\x00\xff<html>\n" * 3)
                await reply.end()
            case Behaviour.TRUNCATED:
                await self._say(reply, self._line(0) + self._line(1) + self._line(2)[:25])
                await reply.end()
            case Behaviour.DRIPS:
                for byte in self._line(0):
                    await self._say(reply, bytes([byte]))
                    await asyncio.sleep(_DRIP_SECONDS)
                await asyncio.Event().wait()
            case Behaviour.CUT:
                await self._say(reply, self._line(0) + self._line(1) + self._line(2)[:25])
                await reply.cut()
            case Behaviour.NO_END_MARK:
                await self._say(reply, b"".join(map(self._line, range(len(self._words)))))
                await reply.end()
            case Behaviour.REFUSES:
                await reply.cut()

    async def _say(self, reply: Reply, data: bytes) -> None:
        await reply.raw(data, "application/x-ndjson" if self._make == "ollama" else "text/event-stream")

    def _line(self, at: int) -> bytes:
        """The word at a place, as its make sends it."""
        word = self._words[at]
        if self._make == "ollama":
            said: dict[str, Any] = {
                "model": "tiny",
                "message": {"role": "assistant", "content": word},
                "done": False,
            }
            return json.dumps(said).encode() + b"\n"
        event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}
        return b"data: " + json.dumps(event).encode() + b"\n\n"


_LISTS: dict[Make, dict[str, Any]] = {
    "ollama": {
        "/api/version": {"version": "0.33.0"},
        "/api/tags": {"models": [{"name": "tiny:latest", "capabilities": ["completion"]}]},
        "/api/ps": {"models": [{"name": "tiny:latest"}]},
    },
    "llama": {
        "/v1/models": {"data": [{"id": "tiny", "object": "model"}]},
        "/props": {"total_slots": 4},
    },
}
