"""The fabric for coroutines: AsyncClient."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from sollol_broker.app_metadata import metadata_text
from sollol_broker.apps import AppView
from sollol_broker.link import LinkConfig
from sollol_broker.names import canonical_model, key_part
from sollol_broker.registry import JobView, ModelView, NodeView, QueueView

from .batching import AsyncBatching
from .cache import AnswerCache
from .cache_key import CacheSettings
from .follow import check_entry_id
from .following import Watcher
from .jobs import AsyncJob
from .operate import AsyncOperating
from .request import Request
from .session import Session, broker_url
from .submit import Submitter


class AsyncClient(Submitter[AsyncJob], AsyncOperating, AsyncBatching):
    """Submits jobs to the fabric and gets their answers; thousands at a time from one process.

        async with AsyncClient("redis://localhost:6379/0", app="my-app") as client:
            answer = await client.submit(chat="Hello", model="llama3.2")
            async for piece in client.submit(chat="Hello", model="llama3.2", stream=True):
                print(piece, end="")

    Args:
        url: the fabric's Redis; None = $SOLLOL_REDIS_URL, else redis://127.0.0.1:6379/0.
        app: this application's name, as the fabric shows it.
        metadata: shown beside the name; 16 KiB at most.
        durability: when a job counts as accepted: "local" = once Redis has it, "ha" = once a replica has it, too.
            None = as the URL or $SOLLOL_DURABILITY says, else "ha" with Sentinel or Cluster.
        connect_timeout: seconds for one try to reach Redis.
        cache: whether equal requests share one answer where that is safe: see `submit`.
        cache_scope: "app" = with requests of the same app only; "shared" = with those of every app that says so.
        cache_max_size, cache_max_bytes: answers kept in this process, and their bytes; 0 = none.
        cache_ttl: seconds for which one is kept in this process; in Redis it is the job's result_ttl.
        live_log: write this client's warnings and errors to the fabric's live log, and this share of its info lines
            (0 to 1), such as jobs that were refused; None = nothing.

    Attributes:
        session: the client's core. answers: those kept for equal requests.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        app: str = "default",
        metadata: Mapping[str, Any] | None = None,
        durability: str | None = None,
        connect_timeout: float = 5.0,
        cache: bool = True,
        cache_scope: str = "app",
        cache_max_size: int = 1000,
        cache_max_bytes: int = 64 * 1024 * 1024,
        cache_ttl: float = 3600.0,
        live_log: float | None = None,
    ) -> None:
        settings = CacheSettings(cache, cache_scope, cache_max_size, cache_max_bytes, cache_ttl)
        self.answers = AnswerCache(app, settings)
        self._metadata = dict(metadata or {})
        metadata_text(self._metadata)  # here is who can mend it
        self.session = Session(
            broker_url(url, durability),
            app,
            self._metadata,
            LinkConfig(connect_seconds=connect_timeout),
            self.answers,
            live_log,
        )
        self._flushing = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: within the connect timeout.
        """
        await self.session.start()

    async def close(self) -> None:
        """Leave. Jobs go on; whoever still waits here gets ClientClosed."""
        await self.session.close()

    def send(self, request: Request, watcher: Watcher) -> None:
        """Send a job that was checked before; what becomes of it reaches the watcher. For what builds on a client."""
        if self.session.submit(request, watcher) and not self._flushing:
            # Jobs of one turn of the loop are sent together.
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def attach(self, job_id: str, *, after: str | None = None) -> AsyncJob:
        """Follow a job that another process submitted, or this one before a crash.

        Args:
            after: the `entry_id` of the last piece that was read: the stream goes on behind it. None = from the
                beginning.

        Raises:
            InvalidJob: `after` is no entry id.

        The job itself raises JobLost where its result has expired, and its stream StreamGap where what follows
        `after` is no longer there.
        """
        check_entry_id(after)
        watcher = AsyncJob(job_id, self.session.cancel, resumed=bool(after))
        self.session.attach(job_id, watcher, after)
        return watcher

    async def cancel(self, job_id: str) -> bool:
        """Cancel any job by its id. False when it had already ended otherwise, or is not known."""
        return await self.session.cancel(job_id) == "cancelled"

    async def nodes(self) -> list[NodeView]:
        """The machines of the fabric with hardware, load and workers."""
        return await self.session.registry.nodes()

    async def apps(self, *, silent: bool = False) -> list[AppView]:
        """The applications that are there, with what became of their jobs; `silent`: those of the last 7 days, too."""
        return await self.session.registry.apps(silent=silent)

    async def queues(self) -> list[QueueView]:
        """Waiting and running jobs per model."""
        return await self.session.registry.queues()

    async def models(self) -> list[ModelView]:
        """The models that live workers serve, and where."""
        return await self.session.registry.models()

    async def jobs(self, limit: int = 50) -> list[JobView]:
        """Running, waiting and lately ended jobs."""
        return await self.session.registry.jobs(limit)

    async def job(self, job_id: str) -> JobView | None:
        """One job's record; None when Redis does not know it (any more)."""
        return await self.session.registry.job(job_id)

    async def position(self, job_id: str) -> int | None:
        """How many jobs wait before this one; None when it does not wait."""
        return await self.session.registry.position(job_id)

    async def stats(self) -> dict[str, Any]:
        """Totals, success rate, and a breakdown by node."""
        return await self.session.registry.stats()

    async def attend(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Say now that this client lives, as it does every few seconds, and show more metadata from now on.

        Raises:
            BrokerUnavailable: Redis cannot be reached, or takes no writes.
            InvalidJob: so much metadata cannot be shown; it stays as it was.
        """
        metadata_text({**self._metadata, **(metadata or {})})
        self._metadata.update(metadata or {})
        await self.session.lookout.attend()

    async def clear_cache(self) -> None:
        """Drop all cached answers of this app (with cache_scope="shared": of all that share); see `submit`.

        Other processes drop them within 20 s.
        """
        await self.session.clear_cache()

    async def invalidate_cache_by_model(self, model: str) -> int:
        """Drop all cached answers of a model, of every app; how many there were, here and in Redis.

        Other processes drop them within 20 s. Jobs that run meanwhile still answer those who wait for them.
        """
        return len(await self.session.invalidate_cache(key_part(canonical_model(model))))

    def _answer_cache(self) -> AnswerCache:
        return self.answers

    def _names(self) -> tuple[str, str]:
        return self.session.app, self.session.inbox_name

    def _send(self, request: Request) -> AsyncJob:
        job = AsyncJob(request.job_id, self.session.cancel)
        self.send(request, job)
        return job

    def _flush(self) -> None:
        self._flushing = False
        self.session.flush()
