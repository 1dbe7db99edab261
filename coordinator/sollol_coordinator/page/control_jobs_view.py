"""The coordinator's jobs in RQ, as they lie in Redis: queues, workers, and the jobs in each registry.

A summary that follows live and fits a phone; RQ's own dashboard (`rq_pages`) has the rest. It is read from RQ's keys
under the fabric's prefix, without RQ, and nothing of a job's arguments is decoded.
"""

from __future__ import annotations

import asyncio
import zlib
from datetime import datetime
from typing import Any

from sollol_broker.broker import Broker

from ..rq_prefix import prefix

_MOST_JOBS = 50
_MOST_QUEUES = 20
_MOST_ERROR_BYTES = 64 * 1024
# The registries of a queue: what RQ calls them, and what they hold. Those first of which none should be cut.
_REGISTRIES = {"wip": "started", "failed": "failed", "deferred": "deferred", "scheduled": "scheduled",
               "finished": "finished", "canceled": "canceled"}  # fmt: skip
_JOB = ("status", "origin", "description", "created_at", "enqueued_at", "started_at", "ended_at", "worker_name",
        "timeout", "exc_info")  # fmt: skip
_WORKER = ("state", "hostname", "pid", "queues", "current_job", "last_heartbeat", "birth",
           "successful_job_count", "failed_job_count", "total_working_time")  # fmt: skip


class ControlJobs:
    """Reads RQ's keys of one fabric."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._prefix = prefix(broker.url.fabric)

    async def read(self) -> dict[str, Any]:
        """All queues with their jobs, and the processes that run them."""
        queues, workers = await asyncio.gather(
            self._rq("SMEMBERS", f"{self._prefix}:queues"), self._rq("SMEMBERS", f"{self._prefix}:workers")
        )
        names = sorted(each.decode(errors="replace").rpartition(":")[2] for each in queues)[:_MOST_QUEUES]
        who = sorted(each.decode(errors="replace") for each in workers)[:_MOST_QUEUES]
        return {
            "queues": list(await asyncio.gather(*(self._queue(name) for name in names))),
            "workers": [each for each in await asyncio.gather(*(self._worker(key) for key in who)) if each],
        }

    async def _queue(self, name: str) -> dict[str, Any]:
        line = f"{self._prefix}:queue:{name}"
        registries = [f"{self._prefix}:{registry}:{name}" for registry in _REGISTRIES]
        waiting, *registered = await asyncio.gather(
            self._rq("LRANGE", line, 0, _MOST_JOBS - 1),
            *(self._rq("ZRANGE", key, 0, _MOST_JOBS - 1, "REV") for key in registries),
        )
        lengths = await asyncio.gather(
            self._rq("LLEN", line), *(self._rq("ZCARD", key) for key in registries)
        )
        counts = dict(zip(("queued", *_REGISTRIES.values()), lengths, strict=True))
        ids: dict[str, None] = dict.fromkeys(each.decode(errors="replace") for each in waiting)
        for members in registered:
            # A started job stands there with its execution: JOB:EXECUTION.
            ids |= dict.fromkeys(each.decode(errors="replace").partition(":")[0] for each in members)
        jobs = await asyncio.gather(*(self._job(each) for each in list(ids)[: 2 * _MOST_JOBS]))
        found = sorted((job for job in jobs if job), key=lambda job: job["created_at"] or 0, reverse=True)
        return {"name": name, "counts": counts, "jobs": found[:_MOST_JOBS]}

    async def _job(self, job_id: str) -> dict[str, Any] | None:
        row = await self._rq("HMGET", f"{self._prefix}:job:{job_id}", *_JOB)
        told = {name: (value or b"") for name, value in zip(_JOB, row, strict=True)}
        if not told["status"]:
            return None
        text = {name: value.decode(errors="replace") for name, value in told.items() if name != "exc_info"}
        return {
            "id": job_id,
            **{name: text[name] for name in ("status", "origin", "description", "worker_name", "timeout")},
            **{name: _moment(text[name]) for name in ("created_at", "enqueued_at", "started_at", "ended_at")},
            "error": _last_line(told["exc_info"]),
        }

    async def _worker(self, key: str) -> dict[str, Any] | None:
        row = await self._rq("HMGET", key, *_WORKER)
        told = {
            name: (value or b"").decode(errors="replace") for name, value in zip(_WORKER, row, strict=True)
        }
        if not told["birth"]:
            return None
        return {
            "name": key.rpartition(":")[2],
            **told,
            "last_heartbeat": _moment(told["last_heartbeat"]),
            "birth": _moment(told["birth"]),
        }

    async def _rq(self, *command: object) -> Any:
        return await self._broker.link.call(*command)


def _moment(text: str) -> float | None:
    """RQ's times, in seconds since the epoch."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def _last_line(packed: bytes) -> str:
    """What went wrong, from the end of a traceback; RQ keeps it compressed."""
    try:
        text = zlib.decompressobj().decompress(packed, _MOST_ERROR_BYTES).decode(errors="replace")
    except zlib.error:
        text = packed[:_MOST_ERROR_BYTES].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""
