"""What the gateway adds to a request, and how many streams one process of it carries.

In front of one echo server, all in one run and in turns: nothing, a bare reverse proxy of Starlette and httpx, the
gateway with Redis and a worker, and LiteLLM's proxy where `$SOLLOL_LITELLM` (or the PATH) has the program. Then 500
streams at once through one gateway, from a worker that says a word every 20 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sollol_broker.child import ChildProcess, describe_exit, last_lines
from sollol_broker.embedded import EmbeddedBroker

from .http_load import Connection, Timed
from .report import Aim, Outcome, Table, median, percentile
from .worker import worker

_CONCURRENCY = (1, 8, 64)
_ROUNDS = 5
_REQUESTS = 400  # in each round, of all connections together
_STREAMS = 500
_TOKENS, _TOKEN_MS = 50, 20.0
_START_SECONDS = 90.0
_BODY: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": False}
_DIRECT, _PROXY, _OURS, _LITELLM = "echo alone", "Starlette proxy", "gateway", "LiteLLM proxy"


@dataclass(frozen=True, slots=True)
class _Door:
    """Where to ask, and how."""

    url: str
    path: str = "/api/chat"
    key: str = ""


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of requests and streams."""
    added, notes = _added(share)
    streams = _streams(max(20, round(_STREAMS * share)))
    return Outcome("gateway", (added[0], streams[0]), (*added[1], *streams[1]), tuple(notes))


def _added(share: float) -> tuple[tuple[Table, list[Aim]], list[str]]:
    requests = max(64, round(_REQUESTS * share))
    with contextlib.ExitStack() as stack:
        doors, notes = _doors(stack)
        took: dict[tuple[str, int], list[list[float]]] = {}
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(max(2, round(_ROUNDS * share))):
            for concurrency in _CONCURRENCY:
                for name, door in doors.items():
                    times, rate = asyncio.run(_asked(door, concurrency, requests))
                    took.setdefault((name, concurrency), []).append(times)
                    rates.setdefault((name, concurrency), []).append(rate)
    rows: list[tuple[str | float, ...]] = []
    extra: dict[tuple[str, int], float] = {}
    for concurrency in _CONCURRENCY:
        base = [percentile(each, 0.5) for each in took[_DIRECT, concurrency]]
        for name in doors:
            rounds = took[name, concurrency]
            p50 = median([percentile(each, 0.5) - one for each, one in zip(rounds, base, strict=True)])
            p99 = median([percentile(each, 0.99) for each in rounds])
            extra[name, concurrency] = p50
            whole = median([percentile(each, 0.5) for each in rounds])
            rows.append((f"{name}, {concurrency} at once", whole, p50, p99, median(rates[name, concurrency])))
    aims = [Aim("added p50 of the gateway, 1 at once", extra[_OURS, 1], 4.0, " ms")]
    if _LITELLM in doors:
        for concurrency in _CONCURRENCY:
            ratio = extra[_OURS, concurrency] / extra[_LITELLM, concurrency]
            aims.append(Aim(f"added p50, ours to LiteLLM's, {concurrency} at once", ratio, 0.5, " x"))
    columns = ("in front of the echo", "p50 ms", "added p50 ms", "p99 ms", "requests/s")
    return (Table(f"gateway: {requests} requests in each round", columns, tuple(rows)), aims), notes


def _doors(stack: contextlib.ExitStack) -> tuple[dict[str, _Door], list[str]]:
    echo = _served(stack, "benchmarks.http_servers", "echo")
    redis = stack.enter_context(EmbeddedBroker())
    environment = {"SOLLOL_REDIS_URL": redis.url}
    stack.enter_context(
        _process("sollol_worker_agent.cli", "--backend", f"ollama+{echo}", "--slots", "64", **environment)
    )
    doors = {
        _DIRECT: _Door(echo),
        _PROXY: _Door(_served(stack, "benchmarks.http_servers", "proxy", echo)),
        _OURS: _Door(_gateway(stack, environment)),
    }
    notes = []
    if program := os.environ.get("SOLLOL_LITELLM") or shutil.which("litellm"):
        doors[_LITELLM] = _litellm(stack, program, echo)
    else:
        notes.append(
            "LiteLLM was left out: install 'litellm[proxy]' in an environment of its own, and name it by SOLLOL_LITELLM"
        )
    for door in doors.values():
        asyncio.run(_until_answered(door))
    return doors, notes


async def _asked(door: _Door, concurrency: int, requests: int) -> tuple[list[float], float]:
    """Milliseconds of each request, and requests per second of all."""
    connections = [await Connection.open(door.url) for _ in range(concurrency)]
    each = max(4, requests // concurrency)

    async def ask(connection: Connection) -> list[Timed]:
        return [await connection.post(door.path, _BODY, door.key) for _ in range(each)]

    began = time.perf_counter()
    answers = [timed for timeds in await asyncio.gather(*map(ask, connections)) for timed in timeds]
    took = time.perf_counter() - began
    await asyncio.gather(*(connection.close() for connection in connections))
    if bad := [timed.status for timed in answers if timed.status != 200]:
        raise RuntimeError(f"{door.url}: {len(bad)} of {len(answers)} requests failed, with {bad[0]}")
    return [timed.ms for timed in answers], len(answers) / took


def _streams(count: int) -> tuple[Table, list[Aim]]:
    backend = f"echo://?slots={count}&models=echo&tokens={_TOKENS}&token_ms={_TOKEN_MS:g}"
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(EmbeddedBroker())
        stack.enter_context(worker("fabric", redis.url, backend))
        door = _Door(_gateway(stack, {"SOLLOL_REDIS_URL": redis.url}))
        asyncio.run(_until_answered(door))
        process = psutil.Process(_listener(door.url))
        before, began = process.cpu_times(), time.perf_counter()
        answers = asyncio.run(_streamed(door, count))
        took, after = time.perf_counter() - began, process.cpu_times()
        memory = process.memory_info().rss / 2**20
    cpu = (after.user + after.system - before.user - before.system) / took
    gaps = [
        (later - sooner) * 1000
        for timed in answers
        for sooner, later in zip(timed.pieces, timed.pieces[1:], strict=False)
    ]
    whole = sum(timed.is_whole for timed in answers)
    columns = (
        "streams",
        "whole",
        "tokens/s",
        "p50 gap ms",
        "p99 gap ms",
        "most ms",
        "cores of the gateway",
        "MiB",
    )
    row = (
        f"{count}",
        whole,
        whole * _TOKENS / took,
        percentile(gaps, 0.5),
        percentile(gaps, 0.99),
        max(gaps),
        cpu,
        memory,
    )
    title = f"gateway: {count} streams at once of {_TOKENS} tokens, one every {_TOKEN_MS:g} ms"
    aims = [
        Aim(f"{count} streams that came whole", whole, count, higher_is_better=True),
        Aim(f"{count} streams in one process", cpu, 0.7, " cores"),
        Aim("longest silence in a stream", max(gaps) / 1000, 2.0, " s"),
    ]
    return Table(title, columns, (row,)), aims


async def _streamed(door: _Door, count: int) -> list[Timed]:
    connections = [await Connection.open(door.url) for _ in range(count)]
    body = {**_BODY, "stream": True}
    answers = await asyncio.gather(*(connection.post(door.path, body) for connection in connections))
    await asyncio.gather(*(connection.close() for connection in connections))
    return list(answers)


def _gateway(stack: contextlib.ExitStack, environment: dict[str, str]) -> str:
    return _served(stack, "sollol_client.gateway.cli", "--port", environment=environment)


def _litellm(stack: contextlib.ExitStack, program: str, echo: str) -> _Door:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sollol-bench-")))
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: echo\n    litellm_params:\n"
        f"      model: openai/echo\n      api_base: {echo}/v1\n      api_key: none\n"
        "general_settings:\n  master_key: sk-bench\n"
    )
    port = _free_port()
    command = [program, "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    stack.enter_context(_child(command, environment))
    return _Door(f"http://127.0.0.1:{port}", "/v1/chat/completions", "sk-bench")


def _served(
    stack: contextlib.ExitStack, module: str, *arguments: str, environment: dict[str, str] | None = None
) -> str:
    """Start a server on a free port; the port stands behind the first argument."""
    port = _free_port()
    stack.enter_context(_process(module, arguments[0], str(port), *arguments[1:], **(environment or {})))
    return f"http://127.0.0.1:{port}"


def _process(
    module: str, *arguments: str, **environment: str
) -> contextlib.AbstractContextManager[ChildProcess]:
    path = os.pathsep.join(each for each in sys.path if each)
    return _child(
        [sys.executable, "-m", module, *arguments], {**os.environ, "PYTHONPATH": path, **environment}
    )


@contextlib.contextmanager
def _child(command: Sequence[str], environment: dict[str, str]) -> Iterator[ChildProcess]:
    with tempfile.TemporaryDirectory(prefix="sollol-bench-") as folder:
        log = Path(folder) / "log"
        process = ChildProcess(list(command), environment=environment, log=log)
        try:
            yield process
            if (status := process.poll()) is not None:
                raise RuntimeError(f"{command[-3:]} ended ({describe_exit(status)}):\n{last_lines(log, 20)}")
        finally:
            process.stop(patience_seconds=10.0)


async def _until_answered(door: _Door) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            connection = await Connection.open(door.url)
            timed = await connection.post(door.path, _BODY, door.key)
            await connection.close()
            if timed.status == 200:
                return
        if time.monotonic() > end:
            raise RuntimeError(f"{door.url} gave no answer within {_START_SECONDS:.0f} s")
        await asyncio.sleep(0.2)


def _listener(url: str) -> int:
    """The process that listens there."""
    port = int(url.rpartition(":")[2])
    found = [each.pid for each in psutil.net_connections("tcp") if each.laddr and each.laddr.port == port
             and each.status == psutil.CONN_LISTEN]  # fmt: skip
    assert found[0] is not None
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
