"""RQ that runs what we allow and nothing else.

RQ calls whatever importable name a job carries, with JSON as with pickle: whoever writes to its keys could run
`os.system` here. A `SafeJob` finds its function and its three callbacks in a list, reads JSON only, and sends no
webhooks. A job that asks for anything else fails before anything of it has run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from redis import Redis
from rq import Queue, Worker
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.serializers import JSONSerializer

from sollol_broker.errors import SollolError

from .rq_prefix import check_rq_is_inside

Function = Callable[..., Any]
_CALLBACKS = ("_success_callback", "_failure_callback", "_stopped_callback")


class JobRefused(SollolError):
    """A job in RQ's queue asks for what is not allowed."""


class SafeJob(Job):
    """A job out of the list; `allowing` makes the class for a list."""

    allowed: ClassVar[Mapping[str, Function]] = {}
    _refusal: str = ""

    def __init__(
        self, id: str | None = None, connection: Redis | None = None, serializer: Any = None
    ) -> None:
        super().__init__(id, connection=connection, serializer=JSONSerializer)

    def restore(self, raw_data: Any) -> Any:
        """Read it from Redis. What is not allowed is taken out, and `func` says so."""
        super().restore(raw_data)
        self._refusal = self._what_is_wrong()
        self.webhooks = []
        if self._refusal:
            for name in _CALLBACKS:
                setattr(self, f"{name}_name", None)
            # RQ names and describes the job while it fails it.
            self._func_name, self._instance, self._args, self._kwargs = "refused", None, (), {}

    @property
    def func(self) -> Function:
        """The function.

        Raises:
            JobRefused: the job is none of ours.
        """
        if self._refusal:
            raise JobRefused(f"job {self.id} was not run: {self._refusal}")
        return self._listed(self.func_name)

    @property
    def success_callback(self) -> Function | None:
        """What to call after the job, if anything."""
        return self._listed(self._success_callback_name) if self._success_callback_name else None

    @property
    def failure_callback(self) -> Function | None:
        """What to call when the job has failed, if anything."""
        return self._listed(self._failure_callback_name) if self._failure_callback_name else None

    @property
    def stopped_callback(self) -> Function | None:
        """What to call when the job was stopped, if anything."""
        return self._listed(self._stopped_callback_name) if self._stopped_callback_name else None

    def _listed(self, name: str | None) -> Function:
        try:
            return self.allowed[name or ""]
        except KeyError:
            raise JobRefused(f"job {self.id}: {str(name)[:100]!r} is not on the list") from None

    def _what_is_wrong(self) -> str:
        """In a few words; "" = nothing."""
        try:
            name, instance = self.func_name, self.instance
        except DeserializationError:
            return "it is not JSON"
        if instance is not None:
            return "it calls a method"
        names = (name, *(getattr(self, f"{each}_name") for each in _CALLBACKS))
        strange = [str(each)[:100] for each in names if each is not None and each not in self.allowed]
        if name is None or strange:
            return f"not on the list: {', '.join(strange) or 'no function at all'}"
        return "it wants a webhook" if self.webhooks else ""


def allowing(functions: Iterable[Function]) -> type[SafeJob]:
    """The job class that runs these functions, as jobs and as callbacks, and no others."""
    listed = {f"{each.__module__}.{each.__qualname__}": each for each in functions}
    return type("SafeJob", (SafeJob,), {"allowed": listed})


def safe_queue(name: str, connection: Redis, jobs: type[SafeJob], *, fabric: str = "") -> Queue:
    """A queue of such jobs, under the fabric's prefix.

    Raises:
        SollolError: RQ's prefix in this process is not the fabric's.
    """
    check_rq_is_inside(fabric)
    return Queue(name, connection=connection, job_class=jobs, serializer=JSONSerializer)


def safe_worker(queues: Iterable[Queue], connection: Redis, jobs: type[SafeJob], **more: Any) -> Worker:
    """An RQ worker that runs such jobs only, each in a process of its own."""
    return Worker(
        list(queues),
        connection=connection,
        job_class=jobs,
        serializer=JSONSerializer,
        # RQ logs what a job was called with.
        log_job_description=False,
        **more,
    )
