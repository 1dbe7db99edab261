"""The shared side of the cache: generations of answers in Redis, and the answer of a job that has ended."""

from __future__ import annotations

import time

from sollol_broker.broker import Broker
from sollol_broker.inbox import EntryFields

_BATCH = 500


async def read_generations(broker: Broker) -> dict[str, int]:
    """All of `Keys.caches`: model keys, and fields of `scope_field`, with their generations."""
    flat = await broker.link.call("HGETALL", broker.keys.caches)
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def begin_generation(broker: Broker, name: str) -> int:
    """Make every process forget the answers of a field of `Keys.caches`: its new generation."""
    return int(await broker.link.call("HINCRBY", broker.keys.caches, name, 1))


async def drop_pointers(broker: Broker, model_key: str) -> set[str]:
    """Take away the pointers to a model's answers, for processes that do not know of the new generation yet.

    The answers themselves stay with their jobs.

    Returns:
        The keys of those that had not run out.
    """
    cached, now_ms = broker.keys.cached(model_key), time.time() * 1000
    dropped: set[str] = set()
    while flat := await broker.link.call("ZRANGE", cached, 0, _BATCH - 1, "WITHSCORES"):
        requests = [request.decode() for request in flat[::2]]
        await broker.link.call("DEL", *(broker.keys.cache(request) for request in requests))
        await broker.link.call("ZREM", cached, *requests)
        ends = zip(requests, map(float, flat[1::2]), strict=True)
        dropped.update(request for request, ends_ms in ends if ends_ms > now_ms)
    return dropped


async def read_end(broker: Broker, job_id: str) -> EntryFields | None:
    """The terminal entry of a job that has ended; None when Redis does not have it (any more)."""
    entries = await broker.link.call("XREVRANGE", broker.keys.events(job_id), "+", "-", "COUNT", 1)
    for entry_id, flat in entries:
        fields: EntryFields = {b"e": entry_id, **dict(zip(flat[::2], flat[1::2], strict=True))}
        return fields if fields.get(b"t") == b"end" else None
    return None
