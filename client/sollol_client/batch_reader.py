"""Reads the results of a batch, page by page: as they come, or in the order of the input."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sollol_broker.batch_record import BatchView, Chunk, EndedChunk
from sollol_broker.batch_store import BatchStore

from .batch_item import BatchItem, items_of, never_run

# Chunks of one page: of long vectors they have some MB.
_PAGE = 16
# Items that were never run are made up in such portions.
_PORTION = 1000


class BatchReader:
    """One reader of a batch; each item is given once, even where a Redis has lost its last moments.

    Args:
        look: how the batch stands now. news: returns when that has changed.
    """

    def __init__(
        self,
        store: BatchStore,
        *,
        look: Callable[[], BatchView],
        news: Callable[[BatchView], Awaitable[None]],
    ) -> None:
        self._store = store
        self._look = look
        self._news = news
        self._seen = bytearray()

    async def as_they_come(self) -> AsyncIterator[list[BatchItem]]:
        """Pages of items in the order in which they end."""
        entry = ""
        while True:
            view = self._look()
            rows = await self._store.ended_after(view.id, entry, _PAGE)
            if not rows:
                if view.state.is_terminal:
                    return
                await self._news(view)
                continue
            entry = rows[-1][0]
            ended = [each for _, each in rows if self._is_new(each.chunk)]
            yield await self._items(view, ended)
            await self._read(view, ended)

    async def in_order(self, start: int, limit: int | None, *, waits: bool) -> AsyncIterator[list[BatchItem]]:
        """Pages of items in the order of the input.

        Args:
            waits: for items that have not ended; else those are left out.
        """
        at, end = start, None if limit is None else start + limit
        while end is None or at < end:
            view = self._look()
            ended = await self._store.ended_from(view.id, at, _PAGE)
            if waits and not view.state.is_terminal:
                ended = _unbroken(ended, at)
            last = view.total if view.total is not None else view.fed
            if not ended and view.state.is_terminal and waits and at < last:
                until = min(last, at + _PORTION, last if end is None else end)
                yield list(never_run(view, Chunk(at, until - at)))
                at = until
                continue
            if not ended:
                if view.state.is_terminal or not waits:
                    return
                await self._news(view)
                continue
            page: list[BatchItem] = []
            for each, items in zip(ended, await self._lists(view, ended), strict=True):
                if waits and view.state.is_terminal and each.chunk.start > at:
                    page += never_run(view, Chunk(at, each.chunk.start - at))
                page += items
                at = max(at, each.chunk.end)
            yield [item for item in page if item.index >= start and (end is None or item.index < end)]
            await self._read(view, ended)

    async def errors(self) -> AsyncIterator[list[BatchItem]]:
        """Pages of the items that failed so far, in the order of the input."""
        at = 0
        while ended := await self._store.ended_from(self._look().id, at, 32 * _PAGE):
            at = ended[-1].chunk.end
            yield await self._items(self._look(), [each for each in ended if each.state != "done"])

    async def _items(self, view: BatchView, ended: Sequence[EndedChunk]) -> list[BatchItem]:
        return [item for items in await self._lists(view, ended) for item in items]

    async def _lists(self, view: BatchView, ended: Sequence[EndedChunk]) -> list[list[BatchItem]]:
        found = await self._store.results(view, ended)
        return [
            [] if data is None else list(items_of(view, each, data))
            for each, data in zip(ended, found, strict=True)
        ]

    async def _read(self, view: BatchView, ended: Sequence[EndedChunk]) -> None:
        """They have been read: a batch that does not keep its results drops them."""
        if not view.keep and ended:
            await self._store.shed(view.id, ended)

    def _is_new(self, chunk: Chunk) -> bool:
        if len(self._seen) < chunk.end:
            self._seen.extend(bytes(chunk.end - len(self._seen)))
        is_new = not self._seen[chunk.start]
        self._seen[chunk.start : chunk.end] = b"\1" * chunk.count
        return is_new


def _unbroken(ended: Sequence[EndedChunk], at: int) -> list[EndedChunk]:
    """Those that follow each other without a gap, from the item at `at` on."""
    found = []
    for each in ended:
        if each.chunk.start > at:
            break
        found.append(each)
        at = each.chunk.end
    return found
