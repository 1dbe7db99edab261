"""Batches: speed beside the best direct batching, two workers beside one, a million items, and who waits meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import redis

from sollol.local import all_minilm, smollm2
from sollol_broker.embedded import EmbeddedBroker
from sollol_client import Client
from sollol_worker_agent.llama_process import LlamaServerProcess

from .report import Aim, Outcome, Table, median, percentile
from .sentences import sentences
from .worker import worker

_MODEL, _CHAT_MODEL = "minilm", "smollm2"
_SLOTS, _THREADS = 2, 1
_SENTENCES = 2000
_SWEPT = 128
_SIZES, _AT_ONCE = (1, 8, 16, 32, 64, 128), (1, 2)
_PORTION = 500
_ECHO_ITEMS, _ECHO_CALL_MS, _ECHO_CHUNK = 16_000, 25, 64
_MILLION = 1_000_000
_CHATS, _CHAT_TOKENS, _BOUND_SECONDS = 40, 8, 1.0
_MIB = 1024 * 1024


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of items."""
    with tempfile.TemporaryDirectory(prefix="sollol-bench-") as there, asyncio.Runner() as runner:
        logs = Path(there)
        embed = LlamaServerProcess(
            model_path=all_minilm(logs), alias=_MODEL, threads=_THREADS, slots=_SLOTS, log_directory=logs
        )
        chat = LlamaServerProcess(
            model_path=smollm2(),
            alias=_CHAT_MODEL,
            threads=_THREADS,
            slots=1,
            context_tokens=2048,
            log_directory=logs,
        )
        runner.run(embed.start())
        try:
            speed, speed_aims = _speed(embed.url, max(200, round(_SENTENCES * share)))
            runner.run(chat.start())
            try:
                waits, wait_aims = _waits(embed.url, chat.url, max(8, round(_CHATS * share)))
            finally:
                runner.run(chat.stop())
        finally:
            runner.run(embed.stop())
    pair, pair_aims = _pair(max(3200, round(_ECHO_ITEMS * share)))
    million, million_aims = _million(max(20_000, round(_MILLION * share)))
    return Outcome(
        "batch", (speed, waits, pair, million), (*speed_aims, *wait_aims, *pair_aims, *million_aims)
    )


def _speed(url: str, count: int) -> tuple[Table, tuple[Aim, ...]]:
    """A batch beside the best that a sweep of direct calls finds, in turns."""
    texts = sentences(count)
    with _direct(url) as ask, EmbeddedBroker() as server, worker("fabric", server.url, f"llama+{url}"):
        with Client(server.url, app="bench") as client:
            swept = {
                (size, at_once): _SWEPT / _seconds(ask, texts[:_SWEPT], size, at_once)
                for size in _SIZES
                for at_once in _AT_ONCE
                if size * at_once <= _SWEPT
            }
            best = max(swept, key=lambda pair: swept[pair])
            list(client.batch(embed=texts[:_SWEPT], model=_MODEL))  # learns the model's pace
            took, vectors = {True: 0.0, False: 0.0}, {}
            # In turns, by portions: a machine's speed drifts while one looks.
            for turn, at in enumerate(range(0, count, _PORTION)):
                portion = texts[at : at + _PORTION]
                for is_direct in (True, False) if turn % 2 else (False, True):
                    began = time.perf_counter()
                    if is_direct:
                        _seconds(ask, portion, *best)
                    else:
                        for item in client.batch(embed=portion, model=_MODEL):
                            vectors[at + item.index] = item.vector
                    took[is_direct] += time.perf_counter() - began
        alone = ask(texts[:200])
    worst = min(_cosine(vectors[i], alone[i]) for i in range(len(alone)))
    direct, through = count / took[True], count / took[False]
    ratio = through / direct
    rows = [
        *((f"direct, {size} texts a call, {n} at once", swept[size, n], 0.0) for size, n in swept),
        (f"direct, the best of these ({best[0]}, {best[1]}), all texts", direct, 1.0),
        ("batch", through, ratio),
    ]
    return Table(f"batch: {count:,} sentences, MiniLM", ("way", "texts/s", "ratio"), tuple(rows)), (
        Aim("batch beside the best direct batching", ratio, 0.95, " x", higher_is_better=True),
        Aim("cosine of a batch's vectors and direct ones, the worst", worst, 0.9999, higher_is_better=True),
    )


def _waits(embed_url: str, chat_url: str, count: int) -> tuple[Table, tuple[Aim, ...]]:
    """Chats at a node with one slot, which a batch keeps busy."""
    with EmbeddedBroker() as server, contextlib.ExitStack() as stack:
        stack.enter_context(worker("fabric", server.url, f"llama+{embed_url} llama+{chat_url}", "", "1"))
        client = stack.enter_context(Client(server.url, app="bench", cache=False))
        quiet = [_chat(client, i) for i in range(count)]
        batch = client.batch(embed=sentences(4000) * 50, model=_MODEL)
        for item in batch:
            if item.index > 1000:  # the pace is learned
                break
        beside = [_chat(client, i) for i in range(count)]
        done = batch.refresh().done
        batch.cancel()
    rows = tuple(
        (
            name,
            percentile([wait for wait, _ in taken], 0.95),
            percentile([own for _, own in taken], 0.95),
            median([wait for wait, _ in taken]),
        )
        for name, taken in (("alone", quiet), (f"beside a batch ({done:,} done)", beside))
    )
    _, wait_ms, own_ms, _ = rows[1]
    table = Table(
        f"chats: {count} on the one slot of a node", ("when", "wait p95 ms", "own p95 ms", "wait p50"), rows
    )
    what = "a chat's wait beside a batch, p95, less its own service time"
    return table, (Aim(what, max(0.0, wait_ms - own_ms) / 1000, _BOUND_SECONDS, " s"),)


def _chat(client: Client, number: int) -> tuple[float, float]:
    """Ms that it waited for its slot, and that it ran."""
    options = {"num_predict": _CHAT_TOKENS, "temperature": 0}
    routing = client.submit(chat=f"Say {number}.", model=_CHAT_MODEL, options=options).result(60).routing
    return routing.queue_wait_ms, routing.run_ms


def _pair(count: int) -> tuple[Table, tuple[Aim, ...]]:
    """Two workers beside one, whose calls take a fixed time each."""
    backend = f"echo://?slots=1&delay_ms={_ECHO_CALL_MS}&models=echo-embed"
    rates = []
    for workers in (1, 2):
        with EmbeddedBroker() as server, contextlib.ExitStack() as stack:
            for _ in range(workers):
                stack.enter_context(worker("fabric", server.url, backend))
            client = stack.enter_context(Client(server.url, app="bench"))
            texts = [f"text {i}" for i in range(count)]
            began = time.perf_counter()
            assert client.batch(embed=texts, model="echo-embed", chunk=_ECHO_CHUNK).wait(300) == "completed"
            rates.append(count / (time.perf_counter() - began))
    ratio = rates[1] / rates[0]
    table = Table(
        f"workers: {count:,} items over echo, {_ECHO_CHUNK} a call, {_ECHO_CALL_MS} ms each",
        ("workers", "items/s", "ratio"),
        (("one", rates[0], 1.0), ("two", rates[1], ratio)),
    )
    return table, (Aim("two workers beside one", ratio, 1.9, " x", higher_is_better=True),)


_FEED = """
import json, psutil, sys, time
from sollol_client import Client

url, count = sys.argv[1], int(sys.argv[2])
memory = psutil.Process().memory_info
with Client(url, app="bench") as client:
    list(client.batch(embed=["warm"], model="echo-embed"))
    before, most, began, seen = memory().rss, 0, time.perf_counter(), 0
    batch = client.batch(embed=(f"this is text number {i}" for i in range(count)), model="echo-embed")
    for item in batch.results():
        assert item.ok and item.index == seen
        seen += 1
        if seen % 5000 == 0:
            most = max(most, memory().rss)
    took = time.perf_counter() - began
    told = {"seen": seen, "grown": most - before, "seconds": took, "state": batch.wait(60)}
print(json.dumps(told))
"""


def _million(count: int) -> tuple[Table, tuple[Aim, ...]]:
    """An iterator of a million items, by a client process of its own."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(EmbeddedBroker())
        stack.enter_context(worker("fabric", server.url, "echo://?slots=4&models=echo-embed"))
        raw = stack.enter_context(redis.Redis.from_url(server.url))
        empty = _memory(raw, "used_memory")
        raw.config_resetstat()
        command = [sys.executable, "-c", _FEED, server.url, str(count)]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        peak = _memory(raw, "used_memory_peak") - empty
    assert (told["seen"], told["state"]) == (count, "completed"), told
    grown = told["grown"] / _MIB
    table = Table(
        f"memory: an iterator of {count:,} items over echo, results read in order",
        ("items/s", "client grows MiB", "Redis at its peak MiB"),
        ((count / told["seconds"], grown, peak / _MIB),),
    )
    return table, (Aim("the client's memory grows", grown, 200.0, " MiB"),)


def _memory(raw: redis.Redis, name: str) -> int:
    info: Any = raw.info("memory")
    return int(info[name])


@contextlib.contextmanager
def _direct(url: str) -> Iterator[_Direct]:
    limits = httpx.Limits(keepalive_expiry=4.0)
    with httpx.Client(base_url=url, trust_env=False, timeout=120, limits=limits) as http:
        yield _Direct(http)


class _Direct:
    """Embeds without the fabric."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """One call."""
        answer = self._http.post("/v1/embeddings", json={"model": _MODEL, "input": texts})
        answer.raise_for_status()
        return [row["embedding"] for row in answer.json()["data"]]


def _seconds(ask: _Direct, texts: list[str], size: int, at_once: int) -> float:
    calls = [texts[at : at + size] for at in range(0, len(texts), size)]
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ask, calls))
    return time.perf_counter() - began


def _cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    return product / lengths
