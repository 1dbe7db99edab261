"""The monitoring page over a small fabric, and over 1,000 nodes with 100,000 waiting jobs.

What it costs Redis with 20 browsers open; when a real browser has painted it, how long an update holds a tab up, and
whether tab and page stay of one size.

python -m benchmarks.page [--minutes 3] [--only-browser]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil

from sollol.local.fabric import free_port
from sollol_broker import Broker, ClaimRequest, LaneOffer, ModelOffer, Submission, parse_url
from sollol_broker.claim_rule import share_of
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.fair_order import head_start_ms
from sollol_broker.names import key_part

from .page_browser import MISSING, MOST_PAINT_MS, MOST_TASK_MS, Weight, chromium, look, weigh

_TTL_MS = 3_600_000
_ADVERT_SECONDS = 4.0
_SECONDS = 20.0
_BROWSERS = 20
_MODELS = ("llama3.1:8b", "qwen2.5:14b", "mistral-small", "nomic-embed", "gemma2:9b")
_GPU = {
    **{
        "index": 0,
        "vendor": "nvidia",
        "name": "NVIDIA GeForce RTX 4090",
        "uuid": "GPU-0",
        "source": "gpustat",
    },
    **{"memory_total_mib": 24_564, "memory_used_mib": 18_000, "memory_free_mib": 6_564, "is_estimate": False},
    **{
        "utilisation_percent": 80,
        "temperature_c": 70,
        "power_w": 350.0,
        "shares_ram": False,
        "driver": "570",
    },
}
_HARDWARE = {
    **{"gpus": [_GPU], "vram_total_mib": 24_564, "vram_free_mib": 6_564, "cpu_model": "AMD Ryzen 9 7950X"},
    **{
        "cpu_count": 32,
        "cpu_percent": 20.0,
        "load_1m": 3.0,
        "ram_total_mib": 65_536,
        "ram_available_mib": 30_000,
    },
}


async def _node(broker: Broker, number: int, turn: int = 0) -> None:
    """A node with a worker of four slots, as a real one advertises itself; its figures differ from turn to turn."""
    swing = (number + turn) % 7
    gpu = {**_GPU, "memory_used_mib": 18_000 + 100 * swing, "utilisation_percent": 80 + swing}
    hardware = {**_HARDWARE, "gpus": [gpu], "cpu_percent": 20.0 + swing, "load_1m": 3.0 + swing / 10}
    share = share_of(load_ms=0, prompt_ms=1, output_ms=10)
    told = {
        **{"kinds": ["chat", "generate"], "size_bytes": 5_000_000_000, "context_tokens": 8192, "listing": {}},
        **{"prompt_ms": 1.0, "output_ms": 10.0, "load_ms": 4000, "success_rate": 1.0, "jobs_seen": 50},
    }
    backend = {
        **{"kind": "ollama", "url": "http://127.0.0.1:11434", "version": "0.33.0", "slots": 4, "busy": 4},
        **{"open": [], "down": "", "loaded": list(_MODELS[:2]), "too_large": {}},
        "models": dict.fromkeys(_MODELS, told),
    }
    await broker.advertise(
        f"node-{number:04}.1",
        f"node-{number:04}",
        ttl_ms=_TTL_MS,
        worker_fields={"state": "up", "slots": "4", "busy": "4", "backends": json.dumps([backend])},
        node_fields={"host": f"host-{number}", "os": "Linux", "hardware": json.dumps(hardware)},
        models=dict.fromkeys(_MODELS, share),
    )


@asynccontextmanager
async def _living(broker: Broker, nodes: int) -> AsyncIterator[None]:
    """All nodes advertise themselves every few seconds, as workers do."""

    async def live() -> None:
        for turn in itertools.count(1):
            began = time.monotonic()
            for number in range(nodes):
                await _node(broker, number, turn)
                if number % 20 == 19:
                    due = began + _ADVERT_SECONDS * number / nodes
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.sleep(max(0.0, began + _ADVERT_SECONDS - time.monotonic()))

    task = asyncio.create_task(live())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _submit(broker: Broker, first: int, count: int) -> None:
    for start in range(first, first + count, 500):
        some = range(start, min(start + 500, first + count))
        await asyncio.gather(*(broker.submit(_job(number)) for number in some))


def _job(number: int) -> Submission:
    return Submission(
        job_id=f"j{number:06}", model=_MODELS[number % 5], app=f"app-{number % 7}", priority=5,
        head_start_ms=head_start_ms(5), stream=True, envelope=b"x" * 200, inbox="", result_ttl_ms=_TTL_MS,
        prompt_chars=400, output_cap=100, needs=b"",
    )  # fmt: skip


async def _claim(broker: Broker, nodes: int) -> None:
    """Every node runs four jobs."""
    for number in range(nodes):
        offers = tuple(ModelOffer(key_part(model), 0.0, 1.0, 10.0) for model in _MODELS)
        await broker.claim(
            ClaimRequest(
                worker=f"node-{number:04}.1", node=f"node-{number:04}", nonce=f"n{number}", lease_ms=_TTL_MS,
                lanes=(LaneOffer(4, offers),), most=4,
            )
        )  # fmt: skip


@asynccontextmanager
async def _page(url: str, log: Path) -> AsyncIterator[tuple[httpx.AsyncClient, psutil.Process]]:
    """`sollol-dashboard` as a process of its own."""
    port = free_port(0)
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sollol_coordinator.page.cli", "--port", str(port)),
            env={**os.environ, "SOLLOL_REDIS_URL": url}, stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        limits = httpx.Limits(max_connections=None)
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=60, limits=limits) as http:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    await http.get("/livez")
                    break
                await asyncio.sleep(0.05)
            yield http, psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def _watch(http: httpx.AsyncClient, path: str, news: list[float]) -> None:
    async with http.stream("GET", path) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                news.append(time.monotonic())


async def _browse(broker: Broker, http: httpx.AsyncClient, paths: Sequence[str]) -> tuple[float, float]:
    """Commands a second that Redis gets while so many browsers look, and the news of the first in a minute."""
    news: list[list[float]] = [[] for _ in paths]
    tasks = [asyncio.create_task(_watch(http, path, each)) for path, each in zip(paths, news, strict=True)]
    await asyncio.sleep(5)
    before, began = await _commands(broker), time.monotonic()
    await asyncio.sleep(_SECONDS)
    spent, seconds = await _commands(broker) - before, time.monotonic() - began
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
    return spent / seconds, 60 * sum(at > began for at in news[0]) / seconds


async def _commands(broker: Broker) -> int:
    text = (await broker.link.call("INFO", "stats")).decode()
    return int(text.partition("total_commands_processed:")[2].split()[0])


async def _first(http: httpx.AsyncClient, path: str) -> tuple[float, int]:
    began = time.monotonic()
    answer = await http.get(path)
    answer.raise_for_status()
    return time.monotonic() - began, len(answer.content)


async def _measure(nodes: int, jobs: int, folder: Path, minutes: float, only_browser: bool) -> None:
    with EmbeddedBroker(appendonly=False) as server:
        broker = Broker(parse_url(server.url), name="benchmark")
        await broker.open()
        for number in range(nodes):
            await _node(broker, number)
        await _submit(broker, 0, jobs)
        await _claim(broker, nodes)
        async with _page(server.url, folder / f"{nodes}.log") as (http, process):
            print(
                f"\n{nodes:,} nodes, {4 * nodes:,} running and {jobs - 4 * nodes:,} waiting jobs", flush=True
            )
            if not only_browser:
                await _over_http(broker, http, process, nodes)
            async with _living(broker, nodes):
                await _in_browser(str(http.base_url), process, minutes)
        await broker.close()


async def _over_http(broker: Broker, http: httpx.AsyncClient, process: psutil.Process, nodes: int) -> None:
    """What programs get, and what that costs."""
    async with _living(broker, nodes):
        await asyncio.sleep(2 * _ADVERT_SECONDS)  # until all nodes have given a sign of life again
        await _firsts(http)
    # From here on Redis hears of nobody but the page.
    print(f"  memory of the page            {process.memory_info().rss / 2**20:6.0f} MiB")
    for what, paths in (
        (f"{_BROWSERS} browsers, one view", ["/live/overview"] * _BROWSERS),
        (f"{_BROWSERS} browsers, all views", [*_ALL, *["/live/overview"] * (_BROWSERS - len(_ALL))]),
    ):
        rate, news = await _browse(broker, http, paths)
        print(f"  {what:29} {rate:6.1f} commands/s at Redis; news {news:.0f} times a minute")
    print(f"  memory of the page            {process.memory_info().rss / 2**20:6.0f} MiB", flush=True)


async def _firsts(http: httpx.AsyncClient) -> None:
    for name, path in (("shell", "/"), ("overview", "/api/overview"), ("nodes", "/api/nodes?page=2"),
                       ("jobs", "/api/jobs?state=waiting"), ("jobs, by app", "/api/jobs?app=app-3"),
                       ("one job", "/api/job?id=j000007")):  # fmt: skip
        seconds, size = await _first(http, path)
        print(f"  first answer, {name:14} {1000 * seconds:6.0f} ms, {size / 1024:7.0f} KiB")


async def _in_browser(base: str, process: psutil.Process, minutes: float) -> None:
    """What a person gets."""
    async with chromium() as browser:
        if browser is None:
            print(f"  {MISSING}")
            return
        print("  in Chromium        text   data  longest task    updates  elements    heap")
        print("                       ms     ms  first  update    in 15 s               MiB", flush=True)
        async for seen in look(browser, base, _SEEN):
            aim = (
                "" if seen.is_quick else f"  above {MOST_PAINT_MS:.0f} ms, or {MOST_TASK_MS:.0f} ms an update"
            )
            print(
                f"  {seen.path:16} {seen.contentful_ms:6.0f} {seen.painted_ms:6.0f} {seen.first_task_ms:6.0f} "
                f"{seen.update_task_ms:7.0f} {seen.updates:10} {seen.elements:9,} {seen.heap_mib:7.1f}{aim}",
                flush=True,
            )
        if minutes:
            print("  one tab on /, left open: seconds, updates, elements, DOM nodes, heap MiB, page MiB")
            await weigh(browser, base, "/", minutes, _say, process)


def _say(told: Weight) -> None:
    print(
        f"    {told.seconds:5.0f} {told.updates:5} {told.elements:8,} {told.nodes:8,} {told.heap_mib:7.1f} "
        f"{told.page_mib:7.0f}",
        flush=True,
    )


_SEEN = ("/", "/nodes", "/jobs", "/node?name=node-0001")
_ALL = [
    *("/live/overview", "/live/nodes", "/live/nodes?state=busy", "/live/node?name=node-0001", "/live/jobs"),
    *("/live/jobs?state=running", "/live/jobs?state=waiting", "/live/jobs?app=app-3", "/live/job?id=j000001"),
    *("/live/job?id=j000090", "/live/groups", "/live/batches", "/live/apps", "/live/log", "/live/control"),
]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="for which a tab is left open; 0 = not at all"
    )
    parser.add_argument("--only-browser", action="store_true", help="not what programs get")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(5, 100, Path(folder), 0, given.only_browser))
        asyncio.run(_measure(1000, 104_000, Path(folder), given.minutes, given.only_browser))


if __name__ == "__main__":
    main()
