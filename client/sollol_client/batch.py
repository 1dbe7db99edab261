"""A batch, as a coroutine sees it (`AsyncBatch`) and as a thread sees it (`Batch`)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from sollol_broker.batch_driver import BatchDriver
from sollol_broker.batch_record import BatchProgress, BatchView, progress_of
from sollol_broker.batch_store import BatchStore
from sollol_broker.errors import ClientClosed, SollolError
from sollol_broker.words import BatchState

from .batch_feeder import BatchFeeder
from .batch_input import BatchSource
from .batch_item import BatchItem
from .batch_reader import BatchReader
from .session import Session

log = logging.getLogger(__name__)
T = TypeVar("T")

# The rate is that of so many seconds.
_RATE_SECONDS = 30.0


class AsyncBatch:
    """Many items as one piece of work: `async for item in batch`, `async for item in batch.results()`.

    This process moves it on while it lives; then the coordinator does, with what has been fed. Made by
    `AsyncClient.batch` and `attach_batch`.

    Attributes:
        id: for `attach_batch`.
    """

    def __init__(
        self,
        session: Session,
        store: BatchStore,
        view: BatchView,
        *,
        source: BatchSource | None = None,
        ahead_bytes: int = 0,
    ) -> None:
        self.id = view.id
        self._session = session
        self._store = store
        self._view = view
        self._source = source
        self._news = asyncio.Event()
        self._closed = False
        self._input_error: Exception | None = None
        self._samples = deque([(time.monotonic(), view.done)])
        self._driver = BatchDriver(
            store, view.id, who=f"{session.inbox_name}-{secrets.token_hex(4)}", on_change=self._on_change
        )
        self._feeder = (
            BatchFeeder(store, self._driver, view, source, ahead_bytes=ahead_bytes)
            if source is not None
            else None
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to drive, and to feed. Called by the client."""
        if self._view.state.is_terminal:
            return
        self._session.leaving.add(self.leave)
        self._tasks = [asyncio.create_task(self._drive())]
        if self._feeder is not None:
            self._tasks.append(asyncio.create_task(self._feed(self._feeder)))

    async def leave(self) -> None:
        """Let others drive it. What was fed is answered; `attach_batch` finds it, `batch` with its id feeds on."""
        self._closed = True
        self._session.leaving.discard(self.leave)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tell()

    @property
    def view(self) -> BatchView:
        """All that is known of it, as of the last look; looks are taken several times a second while it runs."""
        return self._view

    @property
    def state(self) -> BatchState:
        """Where it is in its life."""
        return self._view.state

    @property
    def error(self) -> str:
        """Why a batch FAILED; "" otherwise. What is wrong with single items stands in them."""
        return self._view.why

    @property
    def progress(self) -> BatchProgress:
        """How far it is, how fast, and how long that still takes."""
        return progress_of(self._view, self._rate())

    async def refresh(self) -> BatchView:
        """Look now."""
        standing = await self._store.drive(self.id)
        self._on_change(standing.view)
        return standing.view

    async def wait(self, timeout: float | None = None) -> BatchState:
        """Wait for its end, at most so many seconds; gives the state it ended in.

        Raises:
            TimeoutError: not yet; it goes on.
            JobLost: Redis does not know it any more. ClientClosed: the client was closed.
            Exception: what the iterator of its items raised; the batch has FAILED.
        """
        async with asyncio.timeout(timeout):
            while not self._view.state.is_terminal:
                await self._next_news(self._view)
        self._raise_input_error()
        return self._view.state

    async def results(
        self, start: int = 0, limit: int | None = None, *, wait: bool = True
    ) -> AsyncIterator[BatchItem]:
        """The items in the order of the input, each as soon as all before it have ended.

        Those that a cancelled or failed batch has not come to are there, too, with an error.

        Args:
            start: index of the first. limit: how many; None = all.
            wait: False = only what has ended by now.

        Raises:
            JobLost, ClientClosed: as `wait`.
        """
        async for page in self.pages(start, limit, wait=wait):
            for item in page:
                yield item

    async def __aiter__(self) -> AsyncIterator[BatchItem]:
        """Items as they end, in any order; those that were never run are left out."""
        async for page in self.pages_as_they_come():
            for item in page:
                yield item

    async def errors(self) -> list[tuple[int, SollolError]]:
        """Index and error of each item that failed so far."""
        return [
            (item.index, item.error)
            async for page in self._reader().errors()
            for item in page
            if item.error is not None
        ]

    async def cancel(self) -> bool:
        """End it: nothing of it starts any more, and what runs is stopped. False where it had ended."""
        if (await self.refresh()).state.is_terminal:
            return False
        state = await self._store.halt(self.id, BatchState.CANCELLED)
        await self.refresh()
        self._driver.hurry()
        return state is BatchState.CANCELLED

    def pages(
        self, start: int = 0, limit: int | None = None, *, wait: bool = True
    ) -> AsyncIterator[list[BatchItem]]:
        """`results`, several at a time."""
        return self._and_input_error(self._reader().in_order(start, limit, waits=wait), start)

    def pages_as_they_come(self) -> AsyncIterator[list[BatchItem]]:
        """The items as they end, several at a time."""
        return self._and_input_error(self._reader().as_they_come(), 0)

    async def _and_input_error(
        self, pages: AsyncIterator[list[BatchItem]], start: int
    ) -> AsyncIterator[list[BatchItem]]:
        async for page in pages:
            yield page
        if start == 0:
            self._raise_input_error()

    def _reader(self) -> BatchReader:
        return BatchReader(self._store, look=lambda: self._view, news=self._next_news)

    def _raise_input_error(self) -> None:
        if self._input_error is not None:
            raise self._input_error

    async def _next_news(self, seen: BatchView) -> None:
        """Return once it stands otherwise than in `seen`."""
        while self._view == seen:
            if self._driver.failure is not None:
                raise self._driver.failure
            if self._closed:
                raise ClientClosed(f"the client was closed; batch {self.id} goes on: attach_batch() finds it")
            await self._news.wait()

    def _on_change(self, view: BatchView) -> None:
        now = time.monotonic()
        if view.done != self._view.done:
            self._samples.append((now, view.done))
        while len(self._samples) > 2 and self._samples[0][0] < now - _RATE_SECONDS:
            self._samples.popleft()
        self._view = view
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _rate(self) -> float:
        """Items a second: while it runs those of the last moments, after its end of the whole."""
        if (took := self._view.duration_seconds) is not None:
            return self._view.done / took if took > 0 else 0.0
        (since, before), (until, now) = self._samples[0], self._samples[-1]
        return (now - before) / (until - since) if until > since else 0.0

    async def _drive(self) -> None:
        try:
            await self._driver.run()
        except Exception as error:
            log.exception("batch %s: a mistake of ours", self.id)
            self._driver.failure = SollolError(
                f"batch {self.id} cannot be driven here ({type(error).__name__})"
            )
        finally:
            self._session.leaving.discard(self.leave) if self._view.state.is_terminal else None
            self._tell()

    async def _feed(self, feeder: BatchFeeder) -> None:
        try:
            await feeder.run()
        except Exception as error:
            self._input_error = error
            why = f"its items could not be read to the end ({type(error).__name__})"
            try:
                await self._store.halt(self.id, BatchState.FAILED, why)
            except SollolError as unreachable:
                log.warning("batch %s: it could not be ended: %s", self.id, unreachable)
            self._driver.hurry()
            self._tell()


class _Face(Protocol):
    """What a Batch asks of its client."""

    def run_there(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T: ...


class Batch:
    """Many items as one piece of work: `for item in batch`, `for item in batch.results()`.

    This process moves it on while it lives; then the coordinator does, with what has been fed. Made by
    `Client.batch` and `attach_batch`.

    Attributes:
        id: for `attach_batch`.
    """

    def __init__(self, inner: AsyncBatch, client: _Face) -> None:
        self.id = inner.id
        self._inner = inner
        self._client = client

    @property
    def view(self) -> BatchView:
        """All that is known of it, as of the last look; looks are taken several times a second while it runs."""
        return self._inner.view

    @property
    def state(self) -> BatchState:
        """Where it is in its life."""
        return self._inner.state

    @property
    def error(self) -> str:
        """Why a batch FAILED; "" otherwise. What is wrong with single items stands in them."""
        return self._inner.error

    @property
    def progress(self) -> BatchProgress:
        """How far it is, how fast, and how long that still takes."""
        return self._inner.progress

    def refresh(self) -> BatchView:
        """Look now."""
        return self._client.run_there(self._inner.refresh)

    def wait(self, timeout: float | None = None) -> BatchState:
        """See `AsyncBatch.wait`."""
        return self._client.run_there(lambda: self._inner.wait(timeout))

    def results(self, start: int = 0, limit: int | None = None, *, wait: bool = True) -> Iterator[BatchItem]:
        """The items in the order of the input; see `AsyncBatch.results`."""
        return self._items(lambda: self._inner.pages(start, limit, wait=wait))

    def __iter__(self) -> Iterator[BatchItem]:
        """Items as they end, in any order; those that were never run are left out."""
        return self._items(self._inner.pages_as_they_come)

    def errors(self) -> list[tuple[int, SollolError]]:
        """Index and error of each item that failed so far."""
        return self._client.run_there(self._inner.errors)

    def cancel(self) -> bool:
        """End it: nothing of it starts any more, and what runs is stopped. False where it had ended."""
        return self._client.run_there(self._inner.cancel)

    def _items(self, make: Callable[[], AsyncIterator[list[BatchItem]]]) -> Iterator[BatchItem]:
        pages = make()
        while (page := self._client.run_there(lambda: _next(pages))) is not None:
            yield from page


async def _next(pages: AsyncIterator[list[BatchItem]]) -> list[BatchItem] | None:
    return await anext(pages, None)
