"""A job that an HTTP request waits for: its pieces in bundles, its place in line, its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from starlette.requests import Request as HttpRequest

from sollol_broker.errors import NoNodeForModel, SollolError
from sollol_broker.names import canonical_model
from sollol_broker.quota_left import QuotaLeft
from sollol_broker.words import JobState

from ..aio import AsyncClient
from ..answer import Answer, Delta
from ..follow import Follower
from ..following import Watcher
from .refusals import UnknownModel, quota_headers


@dataclass(frozen=True, slots=True)
class Note:
    """What a waiting client is told.

    Attributes:
        text: what is being done for its job; "" = nothing in particular.
        position: jobs that wait before it; None = it does not wait. eta: seconds until it should begin, if known.
    """

    text: str = ""
    position: int | None = None
    eta: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without what is not known."""
        eta = None if self.eta is None else round(self.eta, 3)
        known = {"note": self.text or None, "position": self.position, "eta_seconds": eta}
        return {name: value for name, value in known.items() if value is not None}


class Running(Watcher):
    """One job, as the request sees it that asked for it.

        async with await serving.run(http, asked) as running:
            await running.begun()                       # raises what the job ended with before its first token
            async for batch in running.batches():       # lists of Delta and Note
                ...
            answer = await running.answer()

    While it is entered, a client that leaves takes the job with it, unless it asked for another thing.

    Attributes:
        id: of the job. model: as the caller wrote it. after: its caller has seen its stream up to this entry.
        is_detached: it goes on when its client has left. entry_id: of its end. state: as far as it has told.
    """

    def __init__(
        self,
        client: AsyncClient,
        job_id: str,
        model: str,
        *,
        detached: bool = False,
        progress: bool = False,
        resumed: bool = False,
        after: str = "",
    ) -> None:
        self.id = self.sent_id = job_id
        self.model = model
        self.after = after
        self.wants_progress = progress
        self.entry_id = ""
        self._client = client
        self.is_detached = detached
        self._http: HttpRequest | None = None
        self._events: list[Delta | Note] = []
        self._wake = asyncio.Event()
        self._outcome: Answer | SollolError | None = None
        self._broken: SollolError | None = None
        self._streamed = resumed
        self._accepted = False
        self._keeps = True
        self._quota: QuotaLeft | None = None
        self.state = JobState.QUEUED
        self._began = time.monotonic()
        self._started_after = 0.0
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._http is not None and not self.is_detached:
            self._watching = asyncio.create_task(self._watch(self._http))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watching is not None:
            self._watching.cancel()
        # A gateway that is told to stop leaves its jobs alone: they can be followed by another one.
        if (
            self._outcome is None
            and kind is not None
            and issubclass(kind, Exception)
            and not self.is_detached
        ):
            self._cancel()

    def of(self, http: HttpRequest) -> Self:
        """The client whose leaving ends the job."""
        self._http = http
        return self

    async def begun(self, patience: float | None = None) -> bool:
        """Wait for the first token, or the end; False: `patience` seconds have passed without.

        Raises:
            SollolError: it ended without an answer.
        """
        try:
            async with asyncio.timeout(patience):
                while not self._events and not self._is_over:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return False
        if not self._events:
            await self._raise_failure()
        return True

    async def batches(self, *, note_seconds: float | None = None) -> AsyncGenerator[list[Delta | Note], None]:
        """What has come since the last look, until the job's end.

        Args:
            note_seconds: while it waits, a Note at least so often; None = no notes.

        Raises:
            SollolError: it ended without an answer, or its stream cannot go on.
        """
        while True:
            if self._events:
                batch, self._events = self._events, []
                yield batch
            elif self._is_over:
                break
            else:
                self._wake.clear()
                notes = None if self._streamed else note_seconds
                try:
                    async with asyncio.timeout(notes):
                        await self._wake.wait()
                except TimeoutError:
                    yield [await self.where()]
        await self._raise_failure()

    async def answer(self) -> Answer:
        """The whole answer.

        Raises:
            SollolError: it ended without one.
        """
        while self._outcome is None:
            self._wake.clear()
            await self._wake.wait()
        await self._raise_failure()
        assert isinstance(self._outcome, Answer)  # noqa: S101  # else it has been raised
        return self._outcome

    async def where(self) -> Note:
        """Its place in line now."""
        position = eta = None
        with contextlib.suppress(SollolError):
            position = await self._client.position(self.id)
            eta = await self._client.eta(self.id) if position is not None else None
        return Note(self.note, position, eta)

    def headers(self) -> dict[str, str]:
        """X-Sollol-Job, -Node, -Queue-Wait (seconds), -Attempts, as far as they are known; what is left of a quota."""
        node, attempts, waited = self.node, self.attempt, self._started_after
        if isinstance(self._outcome, Answer):
            routing = self._outcome.routing
            node, attempts, waited = routing.node, routing.attempt, routing.queue_wait_ms / 1000
        found = {"X-Sollol-Job": self.id}
        if node:
            found["X-Sollol-Node"] = node
        if attempts:
            found["X-Sollol-Attempts"] = str(attempts)
            found["X-Sollol-Queue-Wait"] = f"{waited:.3f}"
        return {**found, **self.quota_headers()}

    def quota_headers(self) -> dict[str, str]:
        """What is left of its application's quota; nothing where it has none."""
        return quota_headers(self._quota)

    async def accepted(self) -> None:
        """Return once the fabric has the job.

        Raises:
            SollolError: it was refused.
        """
        while not (self._accepted or self._is_over):
            self._wake.clear()
            await self._wake.wait()
        if not self._accepted:
            await self._raise_failure()

    def keep_nothing(self) -> None:
        """Nobody here will read its text: others follow it, if anybody does."""
        self._keeps = False

    def on_quota(self, left: QuotaLeft) -> None:
        """See Watcher."""
        self._quota = left

    def on_accepted(self) -> None:
        """See Watcher."""
        self._accepted = True
        self._wake.set()

    def on_note(self, note: str) -> None:
        """See Watcher."""
        self.note = note
        if self.wants_progress and not self._streamed:
            self._put(Note(note))

    def on_start(self, node: str, attempt: int) -> None:
        """See Watcher."""
        if not self.attempt:
            self._started_after = time.monotonic() - self._began
        self.node, self.attempt, self.state = node, attempt, JobState.RUNNING

    def on_id(self, job_id: str) -> None:
        """See Watcher."""
        self.id = job_id

    def on_piece(self, piece: Delta) -> None:
        """See Watcher."""
        self._streamed = True
        self._put(piece)

    def on_break(self, error: SollolError) -> None:
        """See Watcher."""
        self._broken = error
        self._wake.set()

    def on_end(self, follower: Follower) -> None:
        """See Watcher."""
        self.entry_id, self.state = follower.entry_id, follower.state
        outcome = follower.outcome
        if isinstance(outcome, Answer) and not self._streamed and self._broken is None:
            self._put(_all_of(outcome, follower.entry_id))
        self._outcome = outcome
        self._wake.set()

    @property
    def _is_over(self) -> bool:
        return self._outcome is not None or self._broken is not None

    def _put(self, event: Delta | Note) -> None:
        if self._keeps:
            self._events.append(event)
        self._wake.set()

    async def _raise_failure(self) -> None:
        if self._broken is not None:
            raise self._broken
        if isinstance(self._outcome, NoNodeForModel):
            raise await self._explained(self._outcome)
        if isinstance(self._outcome, SollolError):
            raise self._outcome

    async def _explained(self, error: NoNodeForModel) -> SollolError:
        """Whether the model is not there at all, or only nobody serves it now."""
        with contextlib.suppress(SollolError):
            known = {model.name for model in await self._client.models()}
            if error.reasons and canonical_model(self.model) not in known:
                return UnknownModel(self.model)
        return error

    async def _watch(self, http: HttpRequest) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        if self._outcome is None:
            self._cancel()

    def _cancel(self) -> None:
        self._client.session.cancel_soon(self.sent_id)


def _all_of(answer: Answer, entry_id: str) -> Delta:
    """An answer that came whole, as one piece."""
    return Delta.of(
        {
            "text": answer.text,
            "thinking": answer.thinking,
            "tool_calls": answer.tool_calls,
            "logprobs": answer.get("logprobs") or [],
        },
        entry_id,
    )
