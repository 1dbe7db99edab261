"""Keeps batches moving whose drivers are gone, while this process leads: one job in RQ after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from sollol_broker.batch_store import BatchStore
from sollol_broker.broker import Broker
from sollol_broker.periodic import Periodic
from sollol_broker.url import BrokerUrl

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
# Batches of one step; the others wait for the next.
_MOST_AT_ONCE = 64


class StepQueue(Protocol):
    """Where steps are put."""

    async def put(self, batch_ids: Sequence[str]) -> str:
        """Queue one; gives the job's id."""

    async def is_over(self, job_id: str) -> bool:
        """Whether it neither waits nor runs."""


class RqSteps:
    """The queue in Redis, visible in RQ's own dashboard."""

    def __init__(self, url: BrokerUrl) -> None:
        # Here and not above: RQ reads its prefix from the environment when it is imported.
        from .batch_jobs import QUEUE, drive_batches
        from .safe_jobs import allowing, safe_queue
        from .sync_redis import connect

        self._connection = connect(url)
        self._jobs = allowing([drive_batches])
        self._function = drive_batches
        self._queue = safe_queue(QUEUE, self._connection, self._jobs, fabric=url.fabric)

    async def put(self, batch_ids: Sequence[str]) -> str:
        """See StepQueue."""
        from .batch_jobs import FAILED_KEPT_SECONDS, JOB_SECONDS, KEPT_SECONDS

        job = await asyncio.to_thread(
            self._queue.enqueue,
            self._function,
            args=(list(batch_ids),),
            job_timeout=JOB_SECONDS,
            result_ttl=KEPT_SECONDS,
            failure_ttl=FAILED_KEPT_SECONDS,
            description=f"step of {len(batch_ids)} batches: {', '.join(batch_ids)[:200]}",
        )
        return str(job.id)

    async def is_over(self, job_id: str) -> bool:
        """See StepQueue."""
        return await asyncio.to_thread(self._is_over, job_id)

    def _is_over(self, job_id: str) -> bool:
        from rq.exceptions import NoSuchJobError

        try:
            status = self._jobs.fetch(job_id, connection=self._connection).get_status()
        except NoSuchJobError:
            return True
        return status is None or status.value not in ("queued", "started", "scheduled", "deferred")

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


class BatchSteps(Periodic):
    """Looks once a second for batches that nobody drives; when it is stopped, a step that runs goes on.

    Args:
        term: of this process now; 0 = it does not lead.
        on_work: called before a step is queued: somebody has to run it.
    """

    def __init__(
        self, broker: Broker, queue: StepQueue, *, term: Callable[[], int], on_work: Callable[[], None]
    ) -> None:
        super().__init__(self._turn, name="batches", seconds=_LOOK_SECONDS)
        self._store = BatchStore(broker)
        self._queue = queue
        self._term = term
        self._on_work = on_work
        self._step = ""

    async def _turn(self) -> None:
        if not self._term():
            return
        if self._step and not await self._queue.is_over(self._step):
            return
        due = await self._store.due(limit=_MOST_AT_ONCE)
        if not due:
            return
        self._on_work()
        self._step = await self._queue.put(due)
        log.info("batches: a step of %d that nobody drives", len(due))
