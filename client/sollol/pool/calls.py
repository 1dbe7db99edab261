"""A pool's requests on their way: a future of a dict, and a stream of chunks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, InvalidStateError
from typing import Any, Self

from sollol_broker.words import JobKind
from sollol_client import Answer, Client, Job

from ..routing_dict import with_routing
from .chunks import end_chunk, piece_chunk
from .tally import Tally

Submit = Callable[[Client], Job]


class Call(Future[dict[str, Any]]):
    """A request: waits for the fabric if it still comes up, then for the answer. Cancelling it cancels the job.

    Args:
        ready: the client, once it is connected.
        submit: hands the job in.
    """

    def __init__(self, ready: Future[Client], submit: Submit, tally: Tally) -> None:
        super().__init__()
        self._submit = submit
        self._tally = tally
        self._began = time.monotonic()
        self.begun: Future[Job] = Future()
        tally.began()
        ready.add_done_callback(self._begin)

    def cancel(self) -> bool:
        """Stop it, waiting or running."""
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()
        self._tally.failed()
        if self.begun.done() and self.begun.exception() is None:
            self.begun.result().cancel()
        return True

    def _begin(self, ready: Future[Client]) -> None:
        if self.cancelled():
            self.begun.cancel()
            return
        try:
            job = self._submit(ready.result())
        except BaseException as error:  # handed to whoever waits
            self._settle(error)
            self.begun.set_exception(error)
            return
        self.begun.set_result(job)
        if self.cancelled():
            job.cancel()
        job.add_done_callback(self._ended)

    def _ended(self, job: Future[Answer]) -> None:
        if job.cancelled():
            self.cancel()
        elif (error := job.exception()) is not None:
            self._settle(error)
        else:
            self._settle(job.result())

    def _settle(self, outcome: Answer | BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled in this very moment, and counted then
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
                self._tally.failed()
            else:
                self.set_result(with_routing(outcome))
                self._tally.answered(outcome.routing.node, (time.monotonic() - self._began) * 1000)


class ChunkStream:
    """The chunks of an answer as they are made: iterate with `for` or `async for`; awaiting it gives itself.

    Whoever stops reading early stops the job: its slot is free at once.
    """

    def __init__(self, call: Call, kind: JobKind, model: str) -> None:
        self._call = call
        self._kind = kind
        self._model = model

    def __await__(self) -> Generator[Any, None, Self]:
        return self._itself().__await__()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        job = self._call.begun.result()
        try:
            for piece in job:
                yield piece_chunk(self._kind, self._model, piece)
            yield end_chunk(self._kind, job.result())
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        try:
            job = await asyncio.shield(asyncio.wrap_future(self._call.begun))
            async with contextlib.aclosing(aiter(job)) as pieces:
                async for piece in pieces:
                    yield piece_chunk(self._kind, self._model, piece)
            yield end_chunk(self._kind, job.result())
        finally:
            self.close()

    def close(self) -> None:
        """Stop the job unless it has ended."""
        self._call.cancel()

    async def _itself(self) -> Self:
        return self
