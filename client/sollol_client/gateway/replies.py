"""Answers on the wire: JSON at once, or a stream of pieces in the framing of an API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sollol_broker.errors import SollolError

from ..answer import Answer, Delta
from .config import GatewayConfig
from .framing import Framing
from .places import placed
from .refusals import refusal_of
from .running import Note, Running

_JSON = "application/json; charset=utf-8"


def as_json(value: object) -> bytes:
    """Compact JSON in UTF-8; what is no text there (half a surrogate pair) is replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of plain data."""
    return Response(as_json(value), status, headers=dict(headers or {}), media_type=_JSON)


async def stream_reply(
    running: Running, framing: Framing, config: GatewayConfig, *, headers: Mapping[str, str] | None = None
) -> Response:
    """Begin to answer with a stream: with the first token, or when waiting for it has taken long.

    Raises:
        SollolError: the job ended without an answer before anything was sent.
    """
    [framing] = placed([framing], [running])
    tells = framing.always_notes or running.wants_progress
    await running.__aenter__()
    try:
        await running.begun(0 if running.wants_progress else config.patience_seconds if tells else None)
    except BaseException as error:
        await running.__aexit__(type(error), error, None)
        raise
    notes = config.note_seconds if tells else None
    return StreamReply(running, framing, notes, {**running.headers(), **(headers or {})})


class StreamReply(Response):
    """Sends what a running job says, as it says it. It has entered `running`, and leaves it at the end."""

    def __init__(
        self, running: Running, framing: Framing, note_seconds: float | None, headers: Mapping[str, str]
    ) -> None:
        super().__init__(None, 200, headers={**headers, "Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.headers["content-type"] = framing.media_type
        self._running = running
        self._framing = framing
        self._note_seconds = note_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI wants it."""
        async with self._running:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with contextlib.aclosing(
                    self._running.batches(note_seconds=self._note_seconds)
                ) as batches:
                    async for batch in batches:
                        if sent := self._framed(batch):
                            await send({"type": "http.response.body", "body": sent, "more_body": True})
                last = self._framing.end(await self._running.answer())
            except SollolError as error:
                last = self._framing.failed(refusal_of(error))
            await send({"type": "http.response.body", "body": last, "more_body": False})

    def _framed(self, batch: Sequence[Delta | Note]) -> bytes:
        framing = self._framing
        return b"".join(
            framing.piece(event) if isinstance(event, Delta) else framing.note(event) for event in batch
        )


def routing_of(answer: Answer) -> dict[str, Any]:
    """What an answer tells of how it came about."""
    return answer.routing.as_dict()
