"""A submitted job, as a thread sees it (`Job`) and as a coroutine sees it (`AsyncJob`)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, Protocol

from sollol_broker.errors import JobCancelled, SollolError
from sollol_broker.words import JobState

from .answer import Answer, Delta
from .follow import Follower
from .following import Watcher


class _Face(Protocol):
    """What a Job asks of its client."""

    def cancel_job(self, job_id: str) -> None: ...

    def job_state(self, job_id: str) -> JobState | None: ...

    def job_position(self, job_id: str) -> int | None: ...

    def eta(self, job_id: str) -> float | None: ...


class Job(concurrent.futures.Future[Answer], Watcher):
    """A submitted job: a `concurrent.futures.Future` of its Answer, and an iterator of its text.

    `id` is that of the job that is really run: where the answer of an equal request serves, it becomes that
    one's once Redis has said so, and `cancel` only stops waiting.

    `wait`, `as_completed`, `asyncio.wrap_future` and callbacks work as in the standard library, and a coroutine may
    `await` it and iterate over it with `async for` without holding up its loop. Callbacks run in the client's own
    thread: keep them short, and never wait for another job in one.
    """

    def __init__(self, job_id: str, client: _Face, *, resumed: bool = False) -> None:
        super().__init__()
        self.id = self._sent_id = job_id
        self._client = client
        self._pieces: queue.SimpleQueue[Delta | None] = queue.SimpleQueue()
        self._accepted = threading.Event()
        self._was_accepted = False
        self._streamed = resumed
        self._broken: SollolError | None = None
        self._follower: Follower | None = None
        self._on_more: Callable[[], None] = lambda: None

    def __await__(self) -> Generator[Any, None, Answer]:
        return asyncio.shield(asyncio.wrap_future(self)).__await__()

    def result(self, timeout: float | None = None) -> Answer:
        """The answer; waits for it at most `timeout` seconds.

        Raises:
            TimeoutError: not yet; the job goes on.
            JobFailed: it ended without an answer; the subclass says why.
            QueueFull, QuotaExceeded, BrokerUnavailable: it was never accepted.
            concurrent.futures.CancelledError: `cancel()` was called.
        """
        try:
            return super().result(timeout)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"job {self.id} goes on: attach({self.id!r}) finds its answer")
            raise

    def accepted(self, timeout: float | None = None) -> None:
        """Return once the fabric has the job, as the client's `durability` means it; wait at most `timeout` seconds.

        Raises:
            TimeoutError: not yet.
            QueueFull, QuotaExceeded, NoNodeForModel, DeadlineExceeded, BrokerUnavailable: it was never accepted.
        """
        if not self._accepted.wait(timeout):
            raise TimeoutError(f"job {self.id} was not accepted within {timeout:g} s")
        if not self._was_accepted:
            self.result()

    def cancel(self) -> bool:
        """Cancel the job, waiting or running: its slot is freed. False when it has already ended."""
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()
        self._put(None)
        self._accepted.set()
        self._client.cancel_job(self._sent_id)
        return True

    @property
    def state(self) -> JobState:
        """Where the job is in its life; asks Redis while it has not ended here."""
        if self.cancelled():
            return JobState.CANCELLED
        if self._follower is not None and self.done():
            return self._follower.state
        return self._client.job_state(self.id) or JobState.QUEUED

    def position(self) -> int | None:
        """How many jobs wait before this one; None when it does not wait (any more)."""
        return None if self.done() else self._client.job_position(self.id)

    def eta(self) -> float | None:
        """Seconds until it should begin; None when it does not wait, or nobody serves its model."""
        return None if self.done() else self._client.eta(self.id)

    def __iter__(self) -> Iterator[Delta]:
        """New text as it is made, until the job ends. Text goes to one reader: iterate once.

        Raises:
            JobFailed: the job ended without an answer, or could not be continued.
            StreamGap: pieces were trimmed before they could be read, and the answer cannot bring them.
        """
        while (piece := self._pieces.get()) is not None:
            yield piece
        yield from self._rest()

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        """The same for a coroutine, in any loop."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._on_more = lambda: _tell(loop, arrived)
        while True:
            arrived.clear()
            try:
                piece = self._pieces.get_nowait()
            except queue.Empty:
                await arrived.wait()
                continue
            if piece is None:
                break
            yield piece
        for rest in self._rest():
            yield rest

    def _rest(self) -> Iterator[Delta]:
        """What there is to say once the pieces have ended."""
        self._pieces.put(None)  # for a second reader
        if self._broken is not None:
            raise self._broken
        answer = self.result()
        if not self._streamed and answer.text:
            yield Delta.of({"text": answer.text}, self._follower.entry_id if self._follower else "")

    def _put(self, piece: Delta | None) -> None:
        self._pieces.put(piece)
        self._on_more()

    def on_accepted(self) -> None:
        """See Watcher."""
        self._was_accepted = True
        self._accepted.set()

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
        self._put(None)

    def on_end(self, follower: Follower) -> None:
        """See Watcher."""
        self._follower = follower
        self._accepted.set()
        if not self.cancelled():
            try:
                if isinstance(follower.outcome, SollolError):
                    self.set_exception(follower.outcome)
                elif follower.outcome is not None:
                    self.set_result(follower.outcome)
            except concurrent.futures.InvalidStateError:
                pass  # cancelled in this very moment
        self._put(None)


class AsyncJob(Watcher):
    """A submitted job: await it for its Answer, or iterate over its text.

    `id` is that of the job that is really run: where the answer of an equal request serves, it becomes that
    one's once Redis has said so, and `cancel` only stops waiting.

    `answer = await job`; `async for piece in job: …`. Awaiting it from several tasks is fine; a task that
    is cancelled while it waits does not cancel the job: `job.cancel()` does.
    """

    def __init__(self, job_id: str, cancel: Callable[[str], Any], *, resumed: bool = False) -> None:
        self.id = self._sent_id = job_id
        self._cancel = cancel
        self._done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pieces: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._accepted = asyncio.Event()
        self._was_accepted = False
        self._streamed = resumed
        self._broken: SollolError | None = None
        self._follower: Follower | None = None

    def __await__(self) -> Generator[Any, None, Answer]:
        return asyncio.shield(self._done).__await__()

    async def result(self, timeout: float | None = None) -> Answer:
        """The answer; waits for it at most `timeout` seconds. Raises as `Job.result` does."""
        async with asyncio.timeout(timeout):
            return await self

    async def accepted(self, timeout: float | None = None) -> None:
        """Return once the fabric has the job, as the client's `durability` means it; wait at most `timeout` seconds.

        Raises:
            TimeoutError: not yet.
            QueueFull, QuotaExceeded, NoNodeForModel, DeadlineExceeded, BrokerUnavailable: it was never accepted.
        """
        async with asyncio.timeout(timeout):
            await self._accepted.wait()
        if not self._was_accepted:
            await self

    def done(self) -> bool:
        """Whether it has ended."""
        return self._done.done()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.done() and isinstance(self._done.exception(), JobCancelled)

    @property
    def state(self) -> JobState:
        """Where the job is in its life, as far as its entries have told."""
        if self.cancelled():
            return JobState.CANCELLED
        return self._follower.state if self._follower is not None else JobState.QUEUED

    async def cancel(self) -> bool:
        """Cancel the job, waiting or running: its slot is freed. False when it has already ended."""
        if self.done():
            return False
        cancelled = bool(await self._cancel(self._sent_id) == "cancelled")
        if cancelled and not self._done.done():
            self._settle(JobCancelled(f"job {self.id} was cancelled"))
        return cancelled  # if not, its end is on its way here

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """New text as it is made, until the job ends. Text goes to one reader: iterate once."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self._pieces.put_nowait(None)
        if self._broken is not None:
            raise self._broken
        answer = await self
        if not self._streamed and answer.text:
            yield Delta.of({"text": answer.text}, self._follower.entry_id if self._follower else "")

    def on_accepted(self) -> None:
        """See Watcher."""
        self._was_accepted = True
        self._accepted.set()

    def on_id(self, job_id: str) -> None:
        """See Watcher."""
        self.id = job_id

    def on_piece(self, piece: Delta) -> None:
        """See Watcher."""
        self._streamed = True
        self._pieces.put_nowait(piece)

    def on_break(self, error: SollolError) -> None:
        """See Watcher."""
        self._broken = error
        self._pieces.put_nowait(None)

    def on_end(self, follower: Follower) -> None:
        """See Watcher."""
        self._follower = follower
        self._accepted.set()
        if not self._done.done() and follower.outcome is not None:
            self._settle(follower.outcome)

    def _settle(self, outcome: Answer | SollolError) -> None:
        if isinstance(outcome, SollolError):
            self._done.set_exception(outcome)
            self._done.exception()  # an error that nobody awaits is no warning at exit: the job's record has it
        else:
            self._done.set_result(outcome)
        self._pieces.put_nowait(None)


def _tell(loop: asyncio.AbstractEventLoop, arrived: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop of whoever read it is closed
        loop.call_soon_threadsafe(arrived.set)
