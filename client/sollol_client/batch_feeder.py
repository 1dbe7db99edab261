"""Puts the items of a batch into Redis, only so far ahead of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from sollol_broker.batch_driver import BatchDriver
from sollol_broker.batch_plan import Item, pack_item
from sollol_broker.batch_record import BatchView
from sollol_broker.batch_store import MOST_FED, BatchStore
from sollol_broker.errors import QueueFull

from .batch_input import BatchSource

# Of one call; larger ones would hold up Redis.
_CALL_BYTES = 1024 * 1024
_LOOK_SECONDS = 0.02


class BatchFeeder:
    """Feeds one batch from its source.

    Args:
        ahead_bytes: of items in Redis without an answer; more wait here.
    """

    def __init__(
        self,
        store: BatchStore,
        driver: BatchDriver,
        view: BatchView,
        source: BatchSource,
        *,
        ahead_bytes: int,
    ) -> None:
        self._store = store
        self._driver = driver
        self._view = view
        self._source = source
        self._ahead_bytes = ahead_bytes

    async def run(self) -> None:
        """Feed until the source is at its end, or the batch takes no more.

        Raises:
            SollolError: Redis is away for too long, or has lost the batch.
            Exception: whatever the source raises.
        """
        at = self._view.fed
        async for block in self._source.blocks(skip=at):
            for items, packed in _calls(block):
                if not await self._has_room() or not await self._feed(at, items, packed):
                    return
                at += len(items)
        await self._feed(at, (), (), last=True)

    async def _feed(
        self, at: int, items: Sequence[Item], packed: Sequence[bytes], *, last: bool = False
    ) -> bool:
        """Feed some; whether it takes more."""
        while True:
            self._driver.note(at, items)
            try:
                fed = await self._store.feed(self._view, at, packed, last=last)
            except QueueFull as full:
                await asyncio.sleep(full.retry_after)
                continue
            self._driver.hurry()
            return fed.takes_more

    async def _has_room(self) -> bool:
        """Wait for room; False: the batch has ended."""
        while True:
            view = self._driver.view or self._view
            if view.state.is_terminal or self._driver.failure is not None:
                return False
            if view.in_bytes < self._ahead_bytes:
                return True
            await asyncio.sleep(_LOOK_SECONDS)


def _calls(block: Sequence[Item]) -> Iterator[tuple[list[Item], list[bytes]]]:
    items: list[Item] = []
    packed: list[bytes] = []
    size = 0
    for item in block:
        data = pack_item(item)
        if items and (size + len(data) > _CALL_BYTES or len(items) == MOST_FED):
            yield items, packed
            items, packed, size = [], [], 0
        items.append(item)
        packed.append(data)
        size += len(data)
    if items:
        yield items, packed
