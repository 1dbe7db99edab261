"""huey on Redis: one worker thread, blocking pop, and results announced (its fastest way to see one)."""

from __future__ import annotations

import logging
from typing import Any

import redis
from huey import RedisHuey  # type: ignore[import-untyped]  # huey ships no types

from ..worker import READY

_NAME = "bench"
_WAIT_SECONDS = 60


class Huey:
    """The sending side."""

    def __init__(self, url: str) -> None:
        self._huey, self._task = _make(url)
        self._redis = redis.Redis.from_url(url)

    def ask(self, text: str) -> None:
        """See Contender."""
        self._task(text).get(blocking=True, timeout=_WAIT_SECONDS)

    def send(self, count: int) -> None:
        """See Contender."""
        for _ in range(count):
            self._task("hi")

    def accepted(self) -> int:
        """See Contender."""
        return int(self._huey.pending_count()) + self.done()

    def done(self) -> int:
        """See Contender: jobs whose result lies in Redis."""
        return int(self._redis.hlen(f"huey.results.{_NAME}"))

    def close(self) -> None:
        """See Contender."""
        self._huey.storage.conn.close()
        self._redis.close()


def connect(url: str) -> Huey:
    """See ContenderModule."""
    return Huey(url)


def serve(url: str) -> None:
    """See ContenderModule."""
    logging.getLogger("huey").setLevel(logging.WARNING)
    huey, _ = _make(url)
    # The usual consumer of one thread; the scheduler that stands beside it sleeps.
    consumer = huey.create_consumer(workers=1, periodic=False)
    print(READY, flush=True)
    consumer.run()


def _make(url: str) -> tuple[Any, Any]:
    huey = RedisHuey(_NAME, url=url, notify_result=True)

    @huey.task()  # type: ignore[untyped-decorator]  # see above
    def echo(text: str) -> str:
        return text

    return huey, echo
