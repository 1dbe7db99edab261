"""The fabric for threads: Client, a thin face over the async core in a background loop."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from sollol_broker.app_metadata import metadata_text
from sollol_broker.apps import AppView
from sollol_broker.errors import ClientClosed, SollolError
from sollol_broker.link import LinkConfig
from sollol_broker.names import canonical_model, key_part
from sollol_broker.portal import Portal
from sollol_broker.registry import JobView, ModelView, NodeView, QueueView
from sollol_broker.words import JobState

from .batching import Batching
from .cache import AnswerCache
from .cache_key import CacheSettings
from .follow import check_entry_id
from .jobs import Job
from .operate import Operating
from .request import Request
from .session import Session, broker_url
from .submit import Submitter

T = TypeVar("T")


class Client(Submitter[Job], Operating, Batching):
    """Submits jobs to the fabric and gets their answers. Safe to share between threads.

        client = Client("redis://localhost:6379/0", app="my-app")
        job = client.submit(chat="Hello", model="llama3.2")
        print(job.result().text)

    It connects at the first call, and again by itself when Redis was away. After a fork the child makes
    a connection of its own; jobs submitted before belong to the parent.

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
        self._url = broker_url(url, durability)
        self._app = app
        self._metadata = dict(metadata or {})
        metadata_text(self._metadata)  # here is who can mend it
        self._live_log = live_log
        self._config = LinkConfig(connect_seconds=connect_timeout)
        self._lock = threading.Lock()
        self._portal: Portal | None = None
        self._answers = AnswerCache(app, settings)
        self._session = self._new_session()
        self._pid = os.getpid()
        self._closed = False
        self._flushing = False
        _open_clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave. Jobs go on; whoever still waits here gets ClientClosed."""
        if self._pid != os.getpid():  # what is open belongs to the parent, and so may its lock
            self._closed = True
            return
        with self._lock:
            portal, self._portal, self._closed = self._portal, None, True
        if portal is not None:
            portal.run(self._session.close())
            portal.close()

    def attach(self, job_id: str, *, after: str | None = None) -> Job:
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
        portal = self._connected()
        job = Job(job_id, self, resumed=bool(after))
        portal.soon(lambda: self._session.attach(job_id, job, after))
        return job

    def cancel(self, job_id: str) -> bool:
        """Cancel any job by its id. False when it had already ended otherwise, or is not known."""
        return self._connected().run(self._session.cancel(job_id)) == "cancelled"

    def nodes(self) -> list[NodeView]:
        """The machines of the fabric with hardware, load and workers."""
        return self._connected().run(self._session.registry.nodes())

    def queues(self) -> list[QueueView]:
        """Waiting and running jobs per model."""
        return self._connected().run(self._session.registry.queues())

    def models(self) -> list[ModelView]:
        """The models that live workers serve, and where."""
        return self._connected().run(self._session.registry.models())

    def jobs(self, limit: int = 50) -> list[JobView]:
        """Running, waiting and lately ended jobs."""
        return self._connected().run(self._session.registry.jobs(limit))

    def job(self, job_id: str) -> JobView | None:
        """One job's record; None when Redis does not know it (any more)."""
        return self._connected().run(self._session.registry.job(job_id))

    def stats(self) -> dict[str, Any]:
        """Totals, success rate, and a breakdown by node."""
        return self._connected().run(self._session.registry.stats())

    def cancel_job(self, job_id: str) -> None:
        """Send a cancel without waiting; for Job."""
        self._connected().soon(lambda: self._session.cancel_soon(job_id))

    def job_state(self, job_id: str) -> JobState | None:
        """Ask Redis for a job's state; for Job."""
        return self._connected().run(self._session.registry.states([job_id]))[0]

    def job_position(self, job_id: str) -> int | None:
        """Ask Redis for a job's place in line; for Job."""
        return self._connected().run(self._session.registry.position(job_id))

    def _ask(self, question: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        portal = self._connected()
        return portal.run(question(self._session))

    def attend(self, metadata: Mapping[str, Any] | None = None) -> None:
        """Say now that this client lives, as it does every few seconds, and show more metadata from now on.

        Raises:
            BrokerUnavailable: Redis cannot be reached, or takes no writes.
            InvalidJob: so much metadata cannot be shown; it stays as it was.
        """
        metadata_text({**self._metadata, **(metadata or {})})
        self._metadata.update(metadata or {})
        self._ask(lambda session: session.lookout.attend())

    def depart(self) -> None:
        """Let the fabric forget this application now, unless another client has told of it since; for who leaves."""
        self._ask(lambda session: session.broker.depart(session.inbox_name, session.app))

    def apps(self, *, silent: bool = False) -> list[AppView]:
        """The applications that are there, with what became of their jobs; `silent`: those of the last 7 days, too."""
        return self._ask(lambda session: session.registry.apps(silent=silent))

    def clear_cache(self) -> None:
        """Drop all cached answers of this app (with cache_scope="shared": of all that share); see `submit`.

        Other processes drop them within 20 s.
        """
        self._answers.clear()
        self._ask(lambda session: session.clear_cache())

    def invalidate_cache_by_model(self, model: str) -> int:
        """Drop all cached answers of a model, of every app; how many there were, here and in Redis.

        Other processes drop them within 20 s. Jobs that run meanwhile still answer those who wait for them.
        """
        name = key_part(canonical_model(model))
        return len(self._ask(lambda session: session.invalidate_cache(name)))

    def _answer_cache(self) -> AnswerCache:
        return self._answers

    def _names(self) -> tuple[str, str]:
        if self._pid != os.getpid():
            self._after_fork()
        return self._app, self._session.inbox_name

    def _send(self, request: Request) -> Job:
        portal = self._connected()
        job = Job(request.job_id, self)
        if self._session.submit(request, job) and not self._flushing:
            # One wake-up of the loop sends all that comes until it runs.
            self._flushing = True
            portal.soon(self._flush)
        return job

    def _flush(self) -> None:
        self._flushing = False
        self._session.flush()

    def _connected(self) -> Portal:
        portal = self._portal
        if portal is not None and self._pid == os.getpid():
            return portal
        if self._pid != os.getpid():
            self._after_fork()
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed: make a new one")
            if self._portal is None:
                portal = Portal(f"sollol-{self._app}")
                try:
                    portal.run(self._session.start())
                except BaseException:
                    portal.close()
                    self._session = self._new_session()
                    raise
                self._portal = portal
            return self._portal

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._answers = AnswerCache(self._app, self._answers.settings)
        self._portal, self._session, self._pid, self._flushing = None, self._new_session(), os.getpid(), False

    def _new_session(self) -> Session:
        return Session(self._url, self._app, self._metadata, self._config, self._answers, self._live_log)


_open_clients: weakref.WeakSet[Client] = weakref.WeakSet()


@atexit.register
def _close_clients() -> None:
    for client in list(_open_clients):
        # If it does not work, the inbox expires by itself.
        with contextlib.suppress(SollolError, RuntimeError, OSError):
            client.close()
