"""Runs one claimed job on its backend: read, ask, show, and say how it ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sollol_broker.broker import Broker, Claimed
from sollol_broker.envelope import MAX_ANSWER_BYTES, Envelope
from sollol_broker.errors import BackendError, BackendTimeout, DeadlineExceeded, SollolError
from sollol_broker.outcome import Routing, Seam, pack_answer
from sollol_broker.payload import put_blobs_back
from sollol_broker.registry import Registry
from sollol_broker.words import JobKind

from .answer import Collector, embed_answer, rerank_answer, warm_answer
from .backends.protocol import End, Timeouts, Vectors
from .backends.resuming import refusal
from .emitter import Emitter
from .figures import Figures, Flow
from .lane import Lane
from .portion import bound_ms, first_texts, shares
from .so_far import SoFar, so_far
from .spans import Spans
from .takeover import Takeover

# Closing a connection takes a moment; a backend that cannot even do that must not keep the slot.
_CLOSE_SECONDS = 5.0
# What was said last is worth a short wait for Redis when the backend has failed.
_LAST_PIECE_SECONDS = 2.0
_LEAST_SECONDS = 0.001
# Models that an error lists.
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """A job's answer, packed for the terminal entry.

    Attributes:
        fields: the closing fields of the whole answer. measured: those of this attempt, to learn from.
        is_rest: it went on with what earlier attempts had said: what it took is not what the job takes.
        part: of a batch's chunk, how many of its items it answers; 0 = all.
        first_at: monotonic time of its first piece, None = it has none. told_tokens: of its pieces, as they came.
    """

    data: bytes
    model: str
    fields: dict[str, Any]
    measured: dict[str, Any]
    is_rest: bool = False
    first_at: float | None = None
    told_tokens: int = 0
    part: int = 0

    @property
    def prompt_tokens(self) -> int:
        """As the backend counted them; -1 = it did not."""
        return _count(self.fields, "prompt_eval_count")

    @property
    def output_tokens(self) -> int:
        """As the backend counted them; embeddings have none; -1 = it did not."""
        return _count(self.fields, "eval_count")

    @property
    def untold_tokens(self) -> int:
        """Of this attempt, beyond those that its pieces had."""
        return max(0, _count(self.measured, "eval_count") - self.told_tokens)


class Runner:
    """One attempt at one job.

    Args:
        lane: the backend to ask.
        on_lost: called when Redis says that the job is no longer ours.
    """

    def __init__(
        self,
        broker: Broker,
        claimed: Claimed,
        envelope: Envelope,
        lane: Lane,
        *,
        node: str,
        worker: str,
        timeouts: Timeouts,
        on_lost: Callable[[], None],
        figures: Figures,
        spans: Spans,
    ) -> None:
        self._broker = broker
        self._claimed = claimed
        self._envelope = envelope
        self._lane = lane
        self._node = node
        self._worker = worker
        self._timeouts = _within(timeouts, envelope.timeout_seconds, claimed.deadline_ms)
        self._emitter: Emitter | None = None
        if envelope.stream or not refusal(envelope.job_kind, envelope.payload):
            self._emitter = Emitter(broker, claimed.lease, streams=envelope.stream, on_lost=on_lost)
        self._takeover: Takeover | None = None
        self._seams: tuple[Seam, ...] = ()
        self._collector = Collector(envelope.job_kind, envelope.model)
        self._flow = Flow(figures, envelope.model)
        self._spans = spans
        self._first_at: float | None = None
        self._part = 0

    async def run(self) -> Answered:
        """Ask the backend and gather its answer.

        Raises:
            BackendError: it did not work out; `partial` holds the text so far.
            DeadlineExceeded: the job's deadline came first.
            asyncio.CancelledError: the attempt was called off; the backend's slot is free again.
        """
        started = time.monotonic()
        asking = asyncio.create_task(self._ask())
        try:
            async with asyncio.timeout(self._timeouts.total or None):
                answer, fields = await asyncio.shield(asking)
        except TimeoutError:
            raise self._out_of_time() from None
        except BackendError as error:
            if error.status is not None and (better := await self._wrong_kind()) is not None:
                raise better from error
            error.partial = self.text_so_far or error.partial
            if error.retryable:
                await self.keep_what_was_said()
            raise
        finally:
            self._flow.count()
            if self._emitter is not None:
                self._emitter.stop()
            await _stopped(asking)
        self._spans.answered(fields)
        whole = fields if self._takeover is None else self._takeover.whole(fields)
        data = pack_answer({**answer, **whole}, self._routing(started, fields))
        if len(data) > MAX_ANSWER_BYTES:
            raise BackendError(
                f"the answer has {len(data):,} bytes, the limit is {MAX_ANSWER_BYTES:,}: ask for less at once"
            )
        is_rest = self._takeover is not None and self._takeover.how in ("continued", "complete")
        return Answered(
            data, self._envelope.model, whole, fields, is_rest, self._first_at, self._flow.tokens, self._part
        )

    @property
    def text_so_far(self) -> str:
        """Of this attempt, or else of those before it."""
        before = self._takeover.so_far.said.text if self._takeover is not None else ""
        return self._collector.text or before

    async def keep_what_was_said(self) -> None:
        """Write it down, for this attempt gives up and the next one goes on with it."""
        # A second copy that speaks would stop the first one, which runs on.
        if self._emitter is not None and not self._claimed.is_hedge:
            with contextlib.suppress(SollolError, TimeoutError):
                async with asyncio.timeout(_LAST_PIECE_SECONDS):
                    await self._emitter.flush()

    async def _ask(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer, and its closing fields."""
        request = await self._request()
        # Only we count the whole: a total timeout of the backend's would run out in the same moment.
        timeouts = replace(self._timeouts, total=0.0)
        self._spans.asks(self._lane.backend.kind, self._lane.backend.url)
        if self._envelope.job_kind is JobKind.EMBED:
            request = await self._portion(request)
            vectors = await self._lane.backend.embed(self._served_name(), request, timeouts)
            answer = embed_answer(self._envelope.model, vectors)
            return {**answer, **self._tokens_each(request, vectors)}, dict(vectors.fields)
        if self._envelope.job_kind is JobKind.RERANK:
            ranking = await self._lane.backend.rerank(self._served_name(), request, timeouts)
            return rerank_answer(self._envelope.model, ranking), dict(ranking.fields)
        if self._envelope.job_kind is JobKind.WARM:
            began = time.perf_counter_ns()
            await self._lane.backend.warm(self._served_name(), request)
            self._lane.is_outdated = True  # the others should know soon where the model is now
            answer = warm_answer(self._envelope.model, time.perf_counter_ns() - began)
            return answer, answer
        end = await self._generate(request, timeouts)
        if self._emitter is not None:
            await self._emitter.drain()
        return self._collector.answer(end), dict(end.fields)

    def _out_of_time(self) -> BackendTimeout | DeadlineExceeded:
        total, left_ms = self._timeouts.total, self._claimed.deadline_ms
        if left_ms is not None and total == _seconds(left_ms):
            return DeadlineExceeded(f"the deadline passed while {self._lane.backend.url} was at it")
        return BackendTimeout(
            f"{self._lane.backend.url} was not done after {total:g} s; give the job a longer timeout, or raise "
            "the total timeout of the worker",
            phase="total",
            partial=self.text_so_far,
        )

    async def _wrong_kind(self) -> BackendError | None:
        """The error of a job that the model is not made for, in our words: servers have strange ones for it.

        Only after a failure: what a model is for is a guess with some servers.
        """
        kind, model = self._envelope.job_kind, self._envelope.model
        info = self._lane.models.get(model)
        if info is None or kind in info.kinds or kind is JobKind.WARM:
            return None
        served = await Registry(self._broker).models()
        elsewhere = any(each.name == model and kind in each.kinds for each in served)
        able = [each.name for each in served if kind in each.kinds][:_MOST_NAMED]
        return BackendError(
            f"{model} on {self._node} does not {kind}, it is for {', '.join(sorted(info.kinds))}; "
            f"models that do: {', '.join(able) or 'none'}",
            status=400,
            retryable=elsewhere,
            said="" if kind in (JobKind.EMBED, JobKind.RERANK) else f'"{model}" does not support {kind}',
        )

    async def _portion(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of a batch's chunk that would hold the slot for too long here: its first texts only, and Redis is told so."""
        texts, bound = request.get("input"), bound_ms(self._envelope.metadata)
        if not bound or not isinstance(texts, list):
            return request
        count = first_texts(texts, predicted_ms=self._claimed.predicted_ms, bound=bound)
        if count == len(texts):
            return request
        self._part = count
        await self._broker.part(self._claimed.lease, count)
        return {**request, "input": texts[:count]}

    def _tokens_each(self, request: Mapping[str, Any], vectors: Vectors) -> dict[str, list[int]]:
        """Of a batch's chunk, whose items are told one by one."""
        tokens, texts = vectors.fields.get("prompt_eval_count"), request.get("input")
        if (
            not isinstance(tokens, int)
            or tokens <= 0
            or not bound_ms(self._envelope.metadata)
            or not isinstance(texts, list)
        ):
            return {}
        return {"tokens_each": shares(tokens, texts)}

    async def _request(self) -> Mapping[str, Any]:
        payload = self._envelope.payload
        if self._claimed.blobs:
            blobs = await self._broker.blobs(self._claimed.lease, self._claimed.blobs)
            payload = put_blobs_back(payload, [base64.b64encode(blob).decode() for blob in blobs])
        return payload

    async def _generate(self, request: Mapping[str, Any], timeouts: Timeouts) -> End:
        takeover = self._takeover = Takeover(
            self._lane,
            self._claimed.lease.job_id,
            self._envelope.job_kind,
            self._served_name(),
            request,
            timeouts,
            so_far=await self._so_far(),
            is_shown=self._envelope.stream,
        )
        async with contextlib.aclosing(takeover.events()) as events:
            async for event in events:
                now = time.monotonic()
                if self._first_at is None:
                    self._first_at = now
                    self._join(takeover)
                if isinstance(event, End):
                    return event
                self._flow.add(event.tokens, now)
                self._spans.piece()
                self._collector.add(event)
                if self._emitter is not None:
                    self._emitter.add(event)
        raise BackendError(
            f"{self._lane.backend.url} ended its answer without an end mark: it is truncated", retryable=True
        )

    async def _so_far(self) -> SoFar:
        """What earlier attempts have said, if there were any."""
        if self._claimed.attempt == 1:
            return SoFar()
        return so_far(await self._broker.pieces(self._claimed.lease))

    def _join(self, takeover: Takeover) -> None:
        """Put what was said before in front, if this attempt goes on with it."""
        if not takeover.how:
            return
        for piece in takeover.said.pieces:
            self._collector.add(piece)
        seam = Seam(self._claimed.attempt, self._node, len(takeover.said.text), takeover.how)
        self._seams = (*takeover.so_far.seams, seam)
        if self._emitter is not None:
            self._emitter.go_on(seam)

    def _served_name(self) -> str:
        """The model as this backend spells it."""
        info = self._lane.models.get(self._envelope.model)
        return info.name if info else self._envelope.model

    def _routing(self, started: float, fields: Mapping[str, Any]) -> Routing:
        took_ns = fields.get("eval_duration") or 0
        return Routing(
            node=self._node,
            worker=self._worker,
            backend=self._lane.backend.kind,
            attempt=self._claimed.attempt,
            task_type=self._claimed.task,
            queue_wait_ms=round(self._claimed.waited_ms, 3),
            run_ms=_since_ms(started, time.monotonic()),
            first_token_ms=_since_ms(started, self._first_at or started),
            load_ms=round((fields.get("load_duration") or 0) / 1e6, 3),
            tokens_per_second=round((fields.get("eval_count") or 0) * 1e9 / took_ns, 2) if took_ns else 0.0,
            predicted_ms=round(self._claimed.predicted_ms, 3),
            reference_ms=round(self._claimed.reference_ms, 3),
            score=_score(self._claimed),
            hedged=self._claimed.is_hedge,
            seams=self._seams,
        )


async def _stopped(asking: asyncio.Task[Any]) -> None:
    """Cancel it if it still runs, once, and wait for its end, whoever else wants us to stop meanwhile.

    A second cancellation (a cancel and a deadline often come together) would interrupt the closing of the
    backend's connection, and the backend would go on generating for nobody.
    """
    asking.cancel()
    give_up_at, interrupted = time.monotonic() + _CLOSE_SECONDS, False
    while not asking.done() and (left := give_up_at - time.monotonic()) > 0:
        try:
            await asyncio.wait({asking}, timeout=left)
        except asyncio.CancelledError:
            interrupted = True
    if asking.done() and not asking.cancelled():
        asking.exception()  # it has been raised already, or came too late to matter
    if interrupted:
        raise asyncio.CancelledError


def _score(claimed: Claimed) -> float:
    """Predicted time here to that of the better workers."""
    return round(claimed.predicted_ms / claimed.reference_ms, 3) if claimed.reference_ms > 0 else 1.0


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and value >= 0 else -1


def _since_ms(start: float, end: float) -> float:
    return round((end - start) * 1000, 3)


def _seconds(left_ms: float) -> float:
    """Until the deadline; never 0, which would mean that there is none."""
    return max(left_ms / 1000, _LEAST_SECONDS)


def _within(timeouts: Timeouts, asked_seconds: float | None, deadline_ms: float | None) -> Timeouts:
    """The timeouts of this job: its own total time, and never past its deadline."""
    total = asked_seconds or timeouts.total
    if deadline_ms is not None:
        total = min(total or math.inf, _seconds(deadline_ms))
    return replace(timeouts, total=total) if total != timeouts.total else timeouts
