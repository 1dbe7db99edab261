"""dramatiq on Redis: one process with its usual eight threads."""

from __future__ import annotations

import signal
import threading
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from ..worker import READY
from . import WITH_RESULTS

_WAIT_MS = 60_000
_MESSAGES = "dramatiq:default.msgs"


class Dramatiq:
    """The sending side."""

    def __init__(self, url: str) -> None:
        self._backend = _backend(url)
        self._broker, self._plain = _make(url, results=False)
        _, self._answering = _make(url, results=True)
        self._redis = redis.Redis.from_url(url)
        self._sent = 0

    def ask(self, text: str) -> None:
        """See Contender; the worker must have been started with `WITH_RESULTS`."""
        self._answering.send(text).get_result(backend=self._backend, block=True, timeout=_WAIT_MS)

    def send(self, count: int) -> None:
        """See Contender."""
        for _ in range(count):
            self._plain.send("hi")
        self._sent += count

    def accepted(self) -> int:
        """See Contender."""
        return self._left()

    def done(self) -> int:
        """See Contender: messages that are acknowledged."""
        return self._sent - self._left()

    def close(self) -> None:
        """See Contender."""
        self._broker.close()
        self._redis.close()

    def _left(self) -> int:
        return int(self._redis.hlen(_MESSAGES))


def connect(url: str) -> Dramatiq:
    """See ContenderModule."""
    return Dramatiq(url)


def serve(url: str, *options: str) -> None:
    """See ContenderModule."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    broker, _ = _make(url, results=WITH_RESULTS in options)
    worker = dramatiq.Worker(broker)
    worker.start()
    print(READY, flush=True)
    stop.wait()
    worker.stop()
    broker.close()


def _make(url: str, *, results: bool) -> tuple[Any, Any]:
    make_broker: Any = RedisBroker  # its constructor has no types
    broker = make_broker(url=url)
    options: dict[str, Any] = {}
    if results:
        make_results: Any = Results
        broker.add_middleware(make_results(backend=_backend(url)))
        options = {"store_results": True}

    @dramatiq.actor(broker=broker, actor_name="echo", **options)
    def echo(text: str) -> str | None:
        return text if results else None

    return broker, echo


def _backend(url: str) -> Any:
    make_backend: Any = RedisBackend
    return make_backend(url=url)
