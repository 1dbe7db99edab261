"""Moves a batch on: opens chunks, sends them as jobs, cuts those that failed. Needed by clients and the coordinator.

All that counts is decided inside Redis, in the calls that change it; this loop only proposes. So a driver that dies
leaves nothing half done, and two that drive at once do no harm: see `is_wanted` and `settle_chunk` in `_batch.lua`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from .batch_plan import BatchPlan, Item, Refused, chunk_submission, size_of
from .batch_record import BatchView, Chunk
from .batch_rules import (
    ChunkLimits,
    Speed,
    best_chars,
    chunk_tokens,
    fixed_chunk,
    items_for,
    share_of_the_rest,
    window,
)
from .batch_store import BatchStore, ModelSpeed, Standing
from .errors import InvalidJob, JobLost, KeyMissing, SollolError
from .words import BatchState, JobKind

log = logging.getLogger(__name__)

# A driver that dies is missed after so long.
LEASE_MS = 5_000
# A driver that leaves work behind: somebody else may look after it at once; one that can do nothing: not so soon.
_IDLE_DUE_MS = 30_000
# Between two looks: the first after news, up to the last without any.
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.01, 0.2
_ONLOOKER_SECONDS = 0.25
# Between two looks at the model's workers.
_SPEED_SECONDS = 0.5
# Without any news for so long, jobs may be lost: they are sent again, which changes nothing where they are not.
_SEND_AGAIN_SECONDS = 20.0
_RETRY_SECONDS = 1.0
_LOST_REDIS_SECONDS = 0.5


class BatchDriver:
    """One batch, driven by this process while nobody else does; else looked at.

    Args:
        who: a name that no other driver has.
        on_change: called with each new view.
        keeps_watch: go on while there is nothing to do, such as when a reader or a feeder is awaited.

    Attributes:
        view: the latest. failure: why it is no longer followed, if it has not ended.
    """

    def __init__(
        self,
        store: BatchStore,
        batch_id: str,
        *,
        who: str,
        on_change: Callable[[BatchView], None] = lambda view: None,
        keeps_watch: bool = True,
    ) -> None:
        self.batch_id = batch_id
        self.view: BatchView | None = None
        self.failure: SollolError | None = None
        self._store = store
        self._who = who
        self._on_change = on_change
        self._keeps_watch = keeps_watch
        self._plan: BatchPlan | None = None
        self._near: dict[int, Item] = {}
        self._sent: set[Chunk] = set()
        self._connections = 0
        self._hold_until = 0.0
        self._sent_again_at = time.monotonic()
        self._speed: ModelSpeed | None = None
        self._speed_at = -math.inf
        self._hurry = asyncio.Event()
        self._is_idle = False
        self._turn = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self.run())

    async def stop(self) -> None:
        """Leave the batch to others; what is a job already goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def hurry(self) -> None:
        """Look now: something has changed."""
        self._hurry.set()

    def note(self, first: int, items: Sequence[Item]) -> None:
        """These items have just been fed; they need not be read back."""
        self._near.update(enumerate(items, first))

    async def run(self) -> None:
        """Drive until the batch has ended, or there is nothing to do."""
        delay, seen = _FIRST_LOOK_SECONDS, None
        try:
            while True:
                self._hurry.clear()
                try:
                    standing = await self._look()
                    # What moves it on is news as well: items to be sent, chunks that were opened.
                    did = standing.drives and await self._move_on(standing)
                except JobLost as error:
                    self._fail(error)
                    return
                except (InvalidJob, KeyMissing) as error:  # nothing that we could do for it
                    self._is_idle = True
                    self._fail(error)
                    return
                except SollolError as error:
                    log.warning("batch %s: %s", self.batch_id, error)
                    await asyncio.sleep(_LOST_REDIS_SECONDS)
                    continue
                if standing.view.state.is_terminal:
                    return
                if (
                    not self._keeps_watch
                    and not did
                    and (not standing.drives or _has_nothing_to_do(standing))
                ):
                    self._is_idle = True
                    return
                is_news = did or standing.view != seen
                seen = standing.view
                delay = _FIRST_LOOK_SECONDS if is_news else min(2 * delay, _LAST_LOOK_SECONDS)
                try:
                    async with asyncio.timeout(delay if standing.drives else _ONLOOKER_SECONDS):
                        await self._hurry.wait()
                except TimeoutError:
                    pass
        finally:
            await asyncio.shield(self._leave())

    async def _look(self) -> Standing:
        standing = await self._store.drive(
            self.batch_id, self._who, lease_ms=LEASE_MS, keeps_alive=self._keeps_watch
        )
        if not standing.drives:  # who drives reads the items from Redis
            self._near.clear()
        if standing.view != self.view:
            self.view = standing.view
            self._on_change(standing.view)
        return standing

    async def _leave(self) -> None:
        if self.view is None or self.view.state.is_terminal or isinstance(self.failure, JobLost):
            return
        try:
            async with asyncio.timeout(_RETRY_SECONDS):
                due_ms = _IDLE_DUE_MS if self._is_idle else 0
                await self._store.drive(self.batch_id, self._who, lease_ms=0, due_ms=due_ms)
        except (SollolError, TimeoutError) as error:
            log.debug("batch %s: its lease runs out by itself: %s", self.batch_id, error)

    def _fail(self, error: SollolError) -> None:
        self.failure = error
        if self.view is not None:
            self._on_change(self.view)

    async def _move_on(self, standing: Standing) -> bool:
        """One step; whether there was something to do.

        1. End it where its time has come.
        2. Cut what failed, and open new chunks, as many as the window has room for.
        3. Send what is open and was not sent by us.
        """
        view, plan = standing.view, await self._read_plan()
        if (why := _reason_to_halt(view, plan)) is not None:  # 1
            await self._store.halt(self.batch_id, BatchState.FAILED, why)
            self.hurry()
            return True
        now, connections = time.monotonic(), self._store.broker.sure_link.connections
        if connections != self._connections or now > self._sent_again_at + _SEND_AGAIN_SECONDS:
            self._connections, self._sent_again_at = connections, now
            self._sent.clear()
        self._sent.intersection_update(standing.open)
        halves = [chunk.halves() for chunk in standing.failed if chunk.count > 1]  # 2
        fresh = await self._fresh_chunks(standing, plan)
        if halves or fresh:
            await self._store.cut(self.batch_id, [*(first for first, _ in halves), *fresh])
        waiting = [chunk for chunk in standing.open if chunk not in self._sent]
        to_send = [*waiting, *(half for both in halves for half in both), *fresh]  # 3
        if to_send and now >= self._hold_until:
            self._sent_again_at = now
            await asyncio.gather(*(self._send(view, plan, chunk) for chunk in to_send))
        return bool(halves or fresh)

    async def _read_plan(self) -> BatchPlan:
        if self._plan is None:
            self._plan = await self._store.plan(self.batch_id)
        return self._plan

    async def _fresh_chunks(self, standing: Standing, plan: BatchPlan) -> list[Chunk]:
        """Chunks of the next items, as many as there is room for."""
        view = standing.view
        is_ahead = not plan.keep and view.out_bytes >= plan.out_bytes
        if is_ahead or view.next_index >= view.fed or time.monotonic() < self._hold_until:
            return []
        speed = await self._look_at_workers(plan)
        room = (
            window(sum(each.slots for each in speed.speeds)) - len(standing.open) - 2 * len(standing.failed)
        )
        limits = _limits(plan, speed, standing.ms_per_char)
        chunks: list[Chunk] = []
        at = view.next_index
        while len(chunks) < room and at < view.fed:
            items = await self._items(view, Chunk(at, min(limits.most_items, view.fed - at)))
            if not items:
                break
            sized = limits if plan.chunk else self._sized(limits, view, at, speed)
            count = _count(items, sized, speed.chars_per_token)
            self._turn += 1
            is_short = at + count == view.fed and view.total is None and not isinstance(items[-1], Refused)
            if is_short and count < limits.most_items and (standing.open or chunks):
                break  # more may come while others run
            chunks.append(Chunk(at, count))
            at += count
        return chunks

    def _sized(self, limits: ChunkLimits, view: BatchView, at: int, speed: ModelSpeed) -> ChunkLimits:
        """The limits of the next chunk: of what is allowed, the size that the model takes best."""
        most = limits.most_items
        if view.total is not None:
            slots = sum(each.slots for each in speed.speeds)
            most = min(most, share_of_the_rest(view.total - at, slots))
        return replace(limits, most_items=most, most_chars=best_chars(speed.sizes, self._turn))

    async def _items(self, view: BatchView, chunk: Chunk) -> list[Item] | None:
        near = [self._near.get(index) for index in range(chunk.start, chunk.end)]
        if all(item is not None for item in near):
            return [item for item in near if item is not None]
        return await self._store.items(view, chunk)

    async def _look_at_workers(self, plan: BatchPlan) -> ModelSpeed:
        now = time.monotonic()
        if self._speed is None or now > self._speed_at + _SPEED_SECONDS:
            self._speed, self._speed_at = await self._store.speed(plan.model), now
        return self._speed

    async def _send(self, view: BatchView, plan: BatchPlan, chunk: Chunk) -> None:
        items = await self._items(view, chunk)
        if items is None:
            return  # it has its answer by now
        refused = next((item for item in items if isinstance(item, Refused)), None)
        try:
            if refused is not None:
                raise refused.error
            submission = chunk_submission(plan, view, chunk, items)
        except SollolError as error:
            if chunk.count == 1:
                await self._store.spoil(view, chunk.start, error)
            else:  # it was cut by a release with other limits
                log.error(
                    "batch %s: items %d to %d cannot be sent: %s", view.id, chunk.start, chunk.end - 1, error
                )
            return
        reply = await self._store.broker.submit(submission)
        if reply[0] == b"full":
            self._hold_until = time.monotonic() + int(reply[2]) / 1000
            return
        self._sent.add(chunk)
        for index in range(chunk.start, chunk.end):
            self._near.pop(index, None)


def _has_nothing_to_do(standing: Standing) -> bool:
    """Whether only a reader or a feeder can move it on."""
    return not standing.open and not standing.failed


def _count(items: Sequence[Item], limits: ChunkLimits, chars_per_token: float) -> int:
    """How many of these go into one chunk; what cannot be sent is alone."""
    good = next((n for n, item in enumerate(items) if isinstance(item, Refused)), len(items))
    return items_for([size_of(item) for item in items[:good]], limits, chars_per_token) if good else 1


def _limits(plan: BatchPlan, speed: ModelSpeed, ms_per_char: float) -> ChunkLimits:
    """How large chunks may be: as the workers' paces allow, and what chunks of this batch took lately."""
    if plan.kind is not JobKind.EMBED:
        return fixed_chunk(1)
    if plan.chunk:
        return fixed_chunk(plan.chunk)
    limits = chunk_tokens(speed.speeds, plan.bound_ms, is_known=speed.has_run or ms_per_char > 0)
    if ms_per_char <= 0:
        return limits
    seen = Speed(1, ms_per_char * speed.chars_per_token)
    measured = chunk_tokens((seen,), plan.bound_ms, is_known=True)
    return measured if measured.most_tokens < limits.most_tokens else limits


def _reason_to_halt(view: BatchView, plan: BatchPlan) -> str | None:
    if plan.on_error == "stop" and view.failed and not view.state.is_terminal:
        return 'an item failed, and on_error is "stop": see the item\'s error'
    if plan.keep and view.out_bytes > plan.out_bytes:
        return (
            f"its results have more than {plan.out_bytes:,} bytes: read them as they come with keep=False, "
            "or allow more with max_result_bytes"
        )
    return None
