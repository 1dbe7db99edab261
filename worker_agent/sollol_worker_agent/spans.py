"""The spans of one attempt at a job: how long it waited, the claim, the LLM server, and the stream of its pieces."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from sollol_broker.broker import Claimed
from sollol_broker.envelope import Envelope
from sollol_broker.tracing import BACKEND, CLAIM, QUEUE, STREAM, Span, begin, is_traced


class Spans:
    """Made at the claim. Where nobody traces, each call does nothing.

    Args:
        node, worker: who runs it.
    """

    def __init__(self, claimed: Claimed, envelope: Envelope, *, node: str, worker: str) -> None:
        self._claim = self._backend = self._stream = Span()
        self._last_ns = 0
        if not is_traced():
            return
        trace = envelope.trace.model_dump() if envelope.trace is not None else None
        about = {
            "messaging.system": "sollol",
            "messaging.message.id": claimed.lease.job_id,
            "gen_ai.operation.name": envelope.kind,
            "gen_ai.request.model": envelope.model,
            "sollol.app": envelope.app,
            "sollol.attempt": claimed.attempt,
            "sollol.node": node,
            "sollol.worker": worker,
        }
        now = time.time_ns()
        waited = begin(QUEUE, trace, about, began_ns=now - round(claimed.waited_ms * 1e6))
        waited.end(at_ns=now)
        predicted = {"sollol.predicted_ms": claimed.predicted_ms, "sollol.is_hedge": claimed.is_hedge}
        self._claim = begin(CLAIM, trace, {**about, **predicted}, kind="CONSUMER", began_ns=now)

    def asks(self, kind: str, url: str) -> None:
        """The LLM server is asked from now on."""
        if self._claim:
            where = urlsplit(url)
            about = {
                "gen_ai.provider.name": kind,
                "server.address": where.hostname,
                "server.port": where.port,
            }
            self._backend = self._claim.child(BACKEND, about, kind="CLIENT")

    def piece(self) -> None:
        """A piece of its answer came."""
        if self._backend:
            if not self._stream:
                self._stream = self._backend.child(STREAM, {})
            self._last_ns = time.time_ns()

    def answered(self, fields: dict[str, Any]) -> None:
        """It has said all."""
        self._backend.note(
            **{
                "gen_ai.usage.input_tokens": fields.get("prompt_eval_count"),
                "gen_ai.usage.output_tokens": fields.get("eval_count"),
            }
        )
        self._end_backend(None)

    def end(self, error: BaseException | None = None) -> None:
        """The attempt is over, one way or the other."""
        self._end_backend(error)
        self._claim.end(error)

    def _end_backend(self, error: BaseException | None) -> None:
        self._stream.end(error, at_ns=self._last_ns or None)
        self._backend.end(error)
