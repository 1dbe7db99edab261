"""A machine without a worker tells of its hardware, and the worker elsewhere that fronts its server learns of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import redis

from fabric import program, worker
from sollol import AsyncClient
from sollol_broker.registry import NodeView
from waiting import wait_until

BACKEND = "echo://?models=echo"


def report(age_seconds: float = 0.0) -> str:
    gpus = [{"index": 0, "name": "RTX 3090", "memory_total_mb": 24576, "memory_free_mb": 20000}]
    return json.dumps({"vendor": "nvidia", "gpus": gpus, "timestamp": time.time() - age_seconds})


async def node_of(client: AsyncClient, name: str) -> NodeView | None:
    return next((node for node in await client.nodes() if node.name == name), None)


async def test_a_reporter_tells_a_worker_elsewhere_of_its_machine(redis_url: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"elsewhere": "127.0.0.1", "advertise_seconds": 0.2}
    async with (
        AsyncClient(redis_url) as client,
        program(
            tmp_path / "log",
            "sollol_worker_agent.cli",
            "--report-only",
            "--node",
            "gpu-1",
            "--redis",
            redis_url,
        ) as process,
    ):
        await wait_until(lambda: node_of(client, "gpu-1"), timeout=30, what="the reporter")
        alone = await node_of(client, "gpu-1")
        assert alone is not None
        assert [(each.kind, each.slots) for each in alone.workers] == [("reporter", 0)]
        assert alone.hardware["ram_total_mib"] > 0
        # Addresses join the two: here, where nothing but loopback may be up, the host's name does.
        async with worker(redis_url, BACKEND, node="other", **{**config, "elsewhere": alone.host}):
            other = await node_of(client, "other")
            assert other is not None
            assert other.hardware["ram_total_mib"] == alone.hardware["ram_total_mib"]
            # Under the reporter's own name it is left to him to tell.
            async with worker(redis_url, BACKEND, node="gpu-1", **{**config, "elsewhere": alone.host}):
                both = await node_of(client, "gpu-1")
                assert both is not None
                assert sorted(each.kind for each in both.workers) == ["reporter", "worker"]
                assert both.os == alone.os
                answer = await client.submit(chat="hi", model="echo").result(timeout=20)
                assert answer.text == "hi"

                # Once he is gone nothing old is believed.
                process.process.terminate()
                assert await process.exit_status() == 0

                async def is_unknown() -> bool:
                    now = await node_of(client, "gpu-1")
                    return now is not None and now.hardware == {}

                await wait_until(is_unknown, timeout=20, what="the old figures to go")


async def test_reports_of_sollol_0_9_are_read_and_stale_ones_are_not(redis_url: str) -> None:
    async with AsyncClient(redis_url) as client:
        with redis.Redis.from_url(redis_url) as raw:
            raw.set("sollol:gpu:10.77.0.5:80", report(), ex=60)
            raw.set("sollol:gpu:10.77.0.6:80", report(age_seconds=40), ex=60)
        async with (
            worker(redis_url, BACKEND, node="fresh", elsewhere="10.77.0.5"),
            worker(redis_url, BACKEND, node="stale", elsewhere="10.77.0.6"),
        ):
            fresh, stale = await node_of(client, "fresh"), await node_of(client, "stale")
    assert fresh is not None
    assert stale is not None
    assert fresh.hardware["vram_free_mib"] == 20000
    assert stale.hardware == {}
