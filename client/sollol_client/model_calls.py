"""Asks the LLM servers of nodes about their models, for the gateway."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from sollol_broker.errors import BackendError
from sollol_broker.inbox import EntryFields
from sollol_broker.model_calls import CallReply, ModelCall, call_reply, send_call
from sollol_broker.registry import WorkerView

from .session import Session

# A pull that checks a digest of 40 GB says nothing for minutes.
_SILENCE_SECONDS = 900.0
_SHOW_SECONDS = 10.0


async def call_models(
    session: Session, worker: WorkerView, path: str, body: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """Call a worker's LLM server; yields what it says, line by line.

    Raises:
        BackendError: it refused (`status`, `said`), fell silent, or the worker is gone.
        NotAllowed: our user of Redis may not.
    """
    call = ModelCall(secrets.token_hex(12), path, body, session.inbox_name)
    replies: asyncio.Queue[EntryFields] = asyncio.Queue()
    session.replies[call.id] = replies.put_nowait
    patience = _SHOW_SECONDS if path == "/api/show" else _SILENCE_SECONDS
    try:
        if not await send_call(session.broker, worker.id, call):
            raise BackendError(f"{worker.node}: its worker has left", status=503)
        while True:
            reply = await _next(replies, patience, worker)
            for line in reply.lines:
                yield line
            if reply.error:
                raise BackendError(f"{worker.node}: {reply.error}", status=reply.status, said=reply.error)
            if reply.status:
                return
    finally:
        del session.replies[call.id]


async def _next(replies: asyncio.Queue[EntryFields], patience: float, worker: WorkerView) -> CallReply:
    try:
        async with asyncio.timeout(patience):
            return call_reply(await replies.get())
    except TimeoutError:
        raise BackendError(f"{worker.node} has said nothing for {patience:g} s", status=504) from None
