"""What a week of history takes of Redis' memory: a series with jobs in every second, and one of a node that is idle.

python -m benchmarks.series
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

from sollol_broker import Broker, parse_url
from sollol_broker.codec import pack
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.series import CHUNK, STEPS, Gauge, Point, looked

_JOBS_PER_SECOND = 20
_TOKENS_PER_JOB = 100
_ROWS_AT_ONCE = 100


_SEEN: dict[Gauge, float | None] = {
    **{"vram_used_mib": 20_000, "ram_used_mib": 60_000, "load": 3.2, "gpu_percent": 80, "busy": 8, "slots": 8}
}


def _point(chance: random.Random, seconds: int) -> Point:
    """What so many seconds of steady work leave behind: usual lengths, spread over an order of magnitude each."""
    point, jobs = Point(), _JOBS_PER_SECOND * seconds
    seen = min(jobs, 400)
    for _ in range(seen):
        point.count("requests")
        point.count("tokens_in", 300)
        point.count("tokens_out", _TOKENS_PER_JOB)
        point.time("wait", chance.lognormvariate(4, 1.2))
        point.time("ttft", chance.lognormvariate(6, 0.8))
        point.time("latency", chance.lognormvariate(8, 0.7))
        point.time("run", chance.lognormvariate(7.8, 0.7))
        for _ in range(5):
            point.time("gap", chance.lognormvariate(3, 0.6))
    point.times = [{bucket: n * jobs // seen for bucket, n in each.items()} for each in point.times]
    return point


async def _measure() -> None:
    chance = random.Random(1)
    with EmbeddedBroker(appendonly=False) as server:
        broker = Broker(parse_url(server.url), name="benchmark")
        await broker.open()
        now = int((await broker.link.call("TIME"))[0])
        number = 0

        async def tell(node: str, rows: list[tuple[int, Point]]) -> None:
            nonlocal number
            number += 1
            gauges = looked(_SEEN)
            told = [["m", "m", [[second, point.plain()] for second, point in rows]]] if rows else []
            await broker.advertise(
                "w", node, ttl_ms=60_000, worker_fields={}, node_fields={}, models={},
                counted=pack([number, gauges, *told]),
            )  # fmt: skip

        for step in STEPS:
            places = range(now - step.kept_seconds + step.seconds, now, step.seconds)
            rows = [(second, _point(chance, step.seconds)) for second in places]
            for at in range(0, len(rows), _ROWS_AT_ONCE):
                await tell("busy", rows[at : at + _ROWS_AT_ONCE])
        idle = pack(Point(gauges=looked(_SEEN)).plain())
        for step in STEPS:
            for place in range((now - step.kept_seconds) // step.seconds, now // step.seconds):
                key = broker.keys.series(f"n:idle:{step.seconds}:{place // CHUNK}")
                await broker.link.call("HSET", key, place % CHUNK, idle)
        for name, text in (
            ("n:idle", "an idle node"),
            ("n:busy", "a busy node"),
            ("m:m", "a busy model"),
            ("all", "the whole fabric"),
        ):
            keys = [key async for key in _keys(broker, name)]
            used = sum([await broker.link.call("MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys])
            print(f"{text}: {used / 1024:,.0f} KiB in {len(keys)} keys")
        used = await broker.link.call("MEMORY", "USAGE", broker.keys.totals("busy"), "SAMPLES", 0)
        print(f"totals of a node, per model: {used:,} bytes")
        await broker.close()


async def _keys(broker: Broker, series: str) -> AsyncIterator[bytes]:
    cursor = b"0"
    while True:
        cursor, found = await broker.link.call(
            *("SCAN", cursor, "MATCH", broker.keys.series(f"{series}:*"), "COUNT", 1000)
        )
        for key in found:
            yield key
        if cursor == b"0":
            return


if __name__ == "__main__":
    asyncio.run(_measure())
