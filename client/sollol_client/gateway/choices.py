"""Several jobs as the choices of one answer: if one fails, all do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sollol_broker.errors import SollolError

from ..answer import Answer, Delta
from .openai_wire import Completions
from .places import placed
from .refusals import refusal_of
from .running import Running


async def answers_of(runnings: Sequence[Running]) -> list[Answer]:
    """All answers, in order.

    Raises:
        SollolError: of the first that ended without one; the others are not waited for.
    """
    waiting = [asyncio.ensure_future(running.answer()) for running in runnings]
    try:
        return list(await asyncio.gather(*waiting))
    finally:
        for each in waiting:
            each.cancel()


def headers_of(runnings: Sequence[Running]) -> dict[str, str]:
    """Those of the first, and what the last one has left of a quota."""
    return {**runnings[0].headers(), **runnings[-1].quota_headers()}


class ChoicesReply(Response):
    """Streams the choices side by side, each as it comes.

    Args:
        entered: has entered all `runnings`, and leaves them at the end.
    """

    media_type = Completions.media_type

    def __init__(
        self,
        runnings: Sequence[Running],
        completions: Completions,
        note_seconds: float,
        entered: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(None, 200, headers={**headers_of(runnings), "Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.headers["content-type"] = Completions.media_type
        self._runnings = runnings
        self._completions = completions
        self._choices = [completions.choice(index) for index in range(len(runnings))]
        self._framings = placed(self._choices, runnings)
        self._note_seconds = note_seconds
        self._entered = entered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI wants it."""
        try:
            async with self._entered:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async with asyncio.TaskGroup() as group:
                    for index in range(len(self._runnings)):
                        group.create_task(self._say(index, send))
                last = self._completions.close([await running.answer() for running in self._runnings])
        except* SollolError as errors:
            last = self._choices[0].failed(refusal_of(_first(errors)))
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _say(self, index: int, send: Send) -> None:
        running = self._runnings[index]
        framing = self._framings[index]
        # One of them tells of its place in line.
        notes = self._note_seconds if index == 0 else None
        async with contextlib.aclosing(running.batches(note_seconds=notes)) as batches:
            async for batch in batches:
                said = (framing.piece(e) if isinstance(e, Delta) else framing.note(e) for e in batch)
                await send({"type": "http.response.body", "body": b"".join(said), "more_body": True})
        end = self._choices[index].finish(await running.answer())
        await send({"type": "http.response.body", "body": end, "more_body": True})


def _first(errors: BaseExceptionGroup[SollolError]) -> SollolError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
