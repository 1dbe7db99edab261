"""Reads what the fabric has done over the last minutes, hours and days, and all that it has counted."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from .broker import Broker
from .codec import unpack
from .errors import InvalidJob
from .names import canonical_model, key_part
from .series import CHUNK, History, Point, step_for
from .told import text

_ALL = "all"
# A little more than passes between two adverts.
_LAG_SECONDS = 5.0
# Of one point; far more than all of its buckets take.
_MOST_BYTES = 64 * 1024


class SeriesReader:
    """The series of one fabric. A few reads per question, however much happened.

    Args:
        broker: the fabric.
        lag_seconds: workers tell with their adverts; what is younger is left out, for it is not complete.
    """

    def __init__(self, broker: Broker, *, lag_seconds: float = _LAG_SECONDS) -> None:
        self._broker = broker
        self._lag_seconds = lag_seconds

    async def models(self) -> list[str]:
        """Models that have a series, by name."""
        return await self._names(self._broker.keys.series_models)

    async def nodes(self) -> list[str]:
        """Nodes that have a series, live or not, by name."""
        return await self._names(self._broker.keys.series_nodes)

    async def fabric(self, seconds: float) -> History:
        """All models together, over the last so many seconds: in steps of 1 s up to 10 minutes, of 10 s up to 6 hours,
        of 5 minutes up to 7 days.

        Of durations there are ttft, gap, wait and latency, of peaks waiting and oldest_seconds; gauges are a node's.
        """
        return await self._read(_ALL, seconds)

    async def model(self, model: str, seconds: float) -> History:
        """One model, like `fabric`; a model without a series has empty points."""
        return await self._read(f"m:{key_part(canonical_model(model))}", seconds)

    async def node(self, node: str, seconds: float) -> History:
        """One node: counts, gauges, and of durations ttft and run."""
        return await self._read(f"n:{key_part(node)}", seconds)

    async def totals(self) -> dict[str, dict[str, Point]]:
        """All that was ever counted, by node and model; a node that has been silent for 7 days is forgotten."""
        nodes = await self.nodes()
        keys = self._broker.keys
        hashes = await asyncio.gather(*(self._call("HGETALL", keys.totals(node)) for node in nodes))
        return {
            node: {
                text(name): _point(value) for name, value in sorted(zip(flat[::2], flat[1::2], strict=True))
            }
            for node, flat in zip(nodes, hashes, strict=True)
        }

    async def _read(self, series: str, seconds: float) -> History:
        step = step_for(seconds)
        now = await self._call("TIME")
        until = int(now[0]) + int(now[1]) / 1e6 - self._lag_seconds
        last = math.floor(until / step.seconds)
        first = last - max(1, min(math.ceil(seconds), step.kept_seconds) // step.seconds) + 1
        found: dict[int, Point] = {}
        chunks = range(first // CHUNK, last // CHUNK + 1)
        keys = [self._broker.keys.series(f"{series}:{step.seconds}:{chunk}") for chunk in chunks]
        for chunk, flat in zip(
            chunks, await asyncio.gather(*(self._call("HGETALL", key) for key in keys)), strict=True
        ):
            for at, value in zip(flat[::2], flat[1::2], strict=True):
                if at.isdigit():
                    found[chunk * CHUNK + int(at)] = _point(value)
        points = tuple(found.get(at) or Point() for at in range(first, last + 1))
        # The last point holds what was told since, too, and that is half of it on average.
        told = until + self._lag_seconds / 2
        return History(float(first * step.seconds), float(step.seconds), told, points)

    async def _names(self, key: str) -> list[str]:
        return sorted(text(each) for each in await self._call("ZRANGE", key, 0, -1))

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)


def _point(data: bytes) -> Point:
    try:
        return Point.from_plain(unpack(data, max_bytes=_MOST_BYTES))
    except InvalidJob:
        return Point()
