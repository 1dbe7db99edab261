"""What a job costs Redis: function calls, blocking reads, commands inside the functions, server time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import redis

from sollol_broker.embedded import EmbeddedBroker

from .contenders import fabric
from .report import Aim, Outcome, Table
from .worker import worker

_JOBS = 1000
_TOKENS = 50
# Stays short of what the server would have to wait for: 50 tokens, 1 ms apart.
_BACKEND = f"echo://?slots=64&models=echo,slow&tokens={_TOKENS}&token_ms=1"


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of jobs."""
    jobs = max(50, round(_JOBS * share))
    streams = max(5, jobs // 20)
    rows = []
    with EmbeddedBroker() as server:
        with worker("fabric", server.url), contextlib.closing(fabric.connect(server.url)) as sender:
            rows.append(_row("sequential", server.url, jobs, lambda: _ask(sender, jobs)))
            rows.append(_row("drain", server.url, jobs, lambda: _burst(sender, jobs)))
        with worker("fabric", server.url, _BACKEND), contextlib.closing(fabric.connect(server.url)) as sender:
            rows.append(
                _row(f"stream of {_TOKENS} tokens", server.url, streams, lambda: _stream(sender, streams))
            )
    table = Table(
        "commands: per job",
        ("way", "function calls", "blocking reads", "commands inside", "server us", "us per call"),
        tuple(rows),
    )
    calls = {str(row[0]): float(row[1]) for row in rows}
    aims = tuple(Aim(f"function calls per job, {way}", calls[way], 4.0) for way in ("sequential", "drain"))
    return Outcome("commands", (table,), aims)


def _ask(sender: fabric.Fabric, jobs: int) -> None:
    for _ in range(jobs):
        sender.ask("hi")


def _burst(sender: fabric.Fabric, jobs: int) -> None:
    for job in [sender.client.submit(chat="hi", model=fabric.MODEL) for _ in range(jobs)]:
        job.result(60)


def _stream(sender: fabric.Fabric, jobs: int) -> None:
    for _ in range(jobs):
        assert "".join(sender.client.submit(chat="one two three", model=fabric.MODEL, stream=True))


def _row(way: str, url: str, jobs: int, act: Callable[[], None]) -> tuple[str | float, ...]:
    with redis.Redis.from_url(url) as server:
        before = _stats(server)
        act()
        after = _stats(server)
    calls = {name: count - before.get(name, (0, 0))[0] for name, (count, _) in after.items()}
    micros = {name: us - before.get(name, (0, 0))[1] for name, (_, us) in after.items()}
    inside = sum(count for name, count in calls.items() if name not in ("fcall", "xread", "info"))
    # A function's time holds that of the commands inside it.
    spent = micros.get("fcall", 0) + micros.get("xread", 0)
    functions = calls.get("fcall", 0)
    return (
        way,
        functions / jobs,
        calls.get("xread", 0) / jobs,
        inside / jobs,
        spent / jobs,
        micros.get("fcall", 0) / max(1, functions),
    )


def _stats(server: redis.Redis) -> dict[str, tuple[int, int]]:
    """Calls and microseconds by command since the server started."""
    info: Any = server.info("commandstats")
    return {name.removeprefix("cmdstat_"): (each["calls"], each["usec"]) for name, each in info.items()}
