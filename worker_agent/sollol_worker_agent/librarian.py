"""Carries out what an admin asks about the models of this node's LLM servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Protocol, runtime_checkable

from sollol_broker.broker import Broker
from sollol_broker.errors import BackendError, SollolError
from sollol_broker.inbox import EntryFields
from sollol_broker.model_calls import CallReply, ModelCall, read_call, send_call_reply

from .lane import Lane

log = logging.getLogger(__name__)

# A pull says how far it is many times a second; who waits need not read all of that.
_TELL_SECONDS = 0.25
_NO_LIBRARY = "no LLM server on this node manages its models itself, only Ollama does"


@runtime_checkable
class HasLibrary(Protocol):
    """A backend that manages its models itself."""

    def library(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Call it; yields what it says, line by line. Raises BackendError."""


class Librarian:
    """Passes calls on to the first backend that manages its models, and what it says back.

    Args:
        on_change: called after a call that may have changed what there is.
    """

    def __init__(self, broker: Broker, lanes: list[Lane], *, on_change: Callable[[], None]) -> None:
        self._broker = broker
        self._lanes = lanes
        self._on_change = on_change
        self._tasks: set[asyncio.Task[None]] = set()

    def on_entry(self, entry: EntryFields) -> None:
        """Take a call that the inbox tells of."""
        task = asyncio.ensure_future(self._carry_out(entry[b"o"].decode()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Break off what is under way; who waits is told by its silence."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry_out(self, call_id: str) -> None:
        try:
            call = await read_call(self._broker, call_id)
            if call is None:
                return
            log.info("an admin asks for %s", call.path)
            await self._tell(call, await self._call(call))
            if call.path != "/api/show":
                self._on_change()
        except SollolError as error:
            log.warning("a call about models: %s", error)

    async def _call(self, call: ModelCall) -> CallReply:
        """Call the server and tell of what it says meanwhile; gives the end of it."""
        backend = next((lane.backend for lane in self._lanes if isinstance(lane.backend, HasLibrary)), None)
        if not isinstance(backend, HasLibrary):
            return CallReply(status=501, error=_NO_LIBRARY)
        lines: list[dict[str, Any]] = []
        told_at = time.monotonic()
        try:
            async with aclosing(backend.library(call.path, call.body)) as said:
                async for line in said:
                    if lines and _only_goes_on(lines[-1], line):
                        lines.pop()
                    lines.append(line)
                    if time.monotonic() > told_at + _TELL_SECONDS:
                        await self._tell(call, CallReply(tuple(lines)))
                        lines, told_at = [], time.monotonic()
        except BackendError as error:
            return CallReply(tuple(lines), error.status or 502, error.said or str(error))
        return CallReply(tuple(lines), 200)

    async def _tell(self, call: ModelCall, reply: CallReply) -> None:
        await send_call_reply(self._broker, call, reply)


def _only_goes_on(before: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """Whether a line says the same as the one before, only further on."""
    return "completed" in before and before.get("status") == line.get("status")
