"""The floor: redis-py and nothing else, doing by hand what no reliable queue can leave out.

A job's hash, a queue, a bell, a claim with a lease, a result, a reply. No fence, no limits, no retries,
no order among workers: what is measured above this is what SOLLOL adds.
"""

from __future__ import annotations

import signal
import time
import uuid
from typing import Any

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import redis

from ..worker import READY

_JOB, _QUEUE, _LEASES, _BELL, _INBOX, _DONE = "f:job:", "f:queue", "f:leases", "f:bell", "f:inbox", "f:done"
_BLOCK_MS = 2000
_LEASE_SECONDS = 10
_MAXLEN = 1000


class Floor:
    """The sending side."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._last: bytes | str = "0"

    def ask(self, text: str) -> None:
        """See Contender."""
        self._submit(text)
        entry: Any = None
        while not entry:
            entry = self._redis.xread({_INBOX: self._last}, block=_BLOCK_MS)
        self._last, fields = entry[0][1][-1]
        msgpack.unpackb(fields[b"d"])

    def send(self, count: int) -> None:
        """See Contender."""
        for _ in range(count):
            self._submit("hi")

    def accepted(self) -> int:
        """See Contender."""
        return int(self._redis.zcard(_QUEUE)) + self.done()

    def done(self) -> int:
        """See Contender."""
        return int(self._redis.get(_DONE) or 0)

    def close(self) -> None:
        """See Contender."""
        self._redis.close()

    def _submit(self, text: str) -> None:
        job_id = uuid.uuid4().hex
        body = msgpack.packb({"messages": [{"role": "user", "content": text}]})
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_JOB + job_id, mapping={"state": "queued", "env": body})
            pipe.zadd(_QUEUE, {job_id: time.time()})
            pipe.xadd(_BELL, {"j": job_id}, maxlen=_MAXLEN)
            pipe.execute()


def connect(url: str) -> Floor:
    """See ContenderModule."""
    return Floor(url)


def serve(url: str) -> None:
    """See ContenderModule."""
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    server = redis.Redis.from_url(url)
    last: bytes | str = "0"
    print(READY, flush=True)
    while running:
        bells: Any = server.xread({_BELL: last}, block=_BLOCK_MS)
        if bells:
            last = bells[0][1][-1][0]
        while _run_one(server):
            pass


def _run_one(server: redis.Redis) -> bool:
    """Claim a job and answer it; False when there is none."""
    popped: Any = server.zpopmin(_QUEUE)
    if not popped:
        return False
    job_id = popped[0][0].decode()
    with server.pipeline(transaction=True) as pipe:
        pipe.hget(_JOB + job_id, "env")
        pipe.hset(_JOB + job_id, "state", "running")
        pipe.zadd(_LEASES, {job_id: time.time() + _LEASE_SECONDS})
        body = pipe.execute()[0]
    answer = msgpack.packb({"message": msgpack.unpackb(body)["messages"][-1]})
    with server.pipeline(transaction=True) as pipe:
        pipe.hset(_JOB + job_id, mapping={"state": "done", "result": answer})
        pipe.expire(_JOB + job_id, 3600)
        pipe.zrem(_LEASES, job_id)
        pipe.incr(_DONE)
        pipe.xadd(_INBOX, {"j": job_id, "d": answer}, maxlen=_MAXLEN)
        pipe.execute()
    return True
