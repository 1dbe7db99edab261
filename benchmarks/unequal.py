"""Five real worker processes of unequal speed: the fabric's own choice against a caller who picks the node.

The same requests at the same times, into one fabric that all five serve, and into five fabrics of one worker each,
between which the caller takes turns or goes where the fewest of its requests per slot are open. All of that at once,
so that whatever slows this machine slows everybody. The machines are those of the preset `home5`, their clocks running
faster. Every worker begins knowing nothing of its own speed and has the first requests to learn it.

Beside it stands what the simulator makes of the same requests, where everybody knows his speed and nothing takes time
but the work itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sollol.replay.cluster import PRESETS, full_load_factor
from sollol.replay.pull import ClaimRule
from sollol.replay.push import LeastConnectionsPerSlot, RoundRobin
from sollol.replay.simulate import Policy, World, replay
from sollol.replay.trace import Job, stretched
from sollol_broker.embedded import EmbeddedBroker
from sollol_client import AsyncClient

from .contenders.unequal import MODEL, message
from .report import Aim, Outcome, Table, percentile
from .routing import mixes
from .worker import worker

_CLUSTER = "home5"
_NODES = PRESETS[_CLUSTER].nodes
_FASTER = 10.0
_LOADS = (0.5, 0.8, 0.95)
_JOBS = 200
_LEARNING = 60  # the first requests, which do not count
_OURS = "the fabric"


def _take_turns(_: Sequence[int]) -> int:
    return next(_TURNS) % len(_NODES)


def _least_open(open_at: Sequence[int]) -> int:
    return min(range(len(_NODES)), key=lambda at: (open_at[at] + 1) / _NODES[at].slots)


_TURNS = itertools.count()
Picker = Callable[[Sequence[int]], int]
# Who picks the node; how, where it is the caller; and how the simulator calls that.
_PICKERS: dict[str, tuple[Picker | None, Callable[[World], Policy]]] = {
    "round-robin": (_take_turns, RoundRobin),
    "least connections per slot": (_least_open, LeastConnectionsPerSlot),
    _OURS: (None, ClaimRule),
}


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of the machines' clocks, from submit to first token and to the end of the answer."""

    first: Sequence[float]
    end: Sequence[float]


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of requests."""
    jobs = mixes.chat(max(_LEARNING + 40, round(_JOBS * share)))
    rows: list[tuple[str | float, ...]] = []
    aims: list[Aim] = []
    for load in _LOADS:
        scaled = stretched(jobs, full_load_factor(PRESETS[_CLUSTER], jobs) / load)
        real = dict(zip(_PICKERS, asyncio.run(_side_by_side(scaled)), strict=True))
        ours = real[_OURS]
        for name, (_, policy) in _PICKERS.items():
            simulated = replay(PRESETS[_CLUSTER], scaled, name, policy)
            rows.append(_row(f"{name}, load {load}", real[name], ours, simulated.end_s[_LEARNING:]))
            if name == _OURS:
                ratio = statistics.mean(ours.end) / statistics.mean(simulated.end_s[_LEARNING:])
                aims.append(Aim(f"mean, real to simulated, load {load}", ratio, 1.15, " x"))
            else:
                ratio = statistics.mean(ours.end) / statistics.mean(real[name].end)
                aims.append(Aim(f"mean, the fabric's to that of {name}, load {load}", ratio, 1.0, " x"))
    columns = (
        "who picks, load",
        "mean s",
        "p95 s",
        "first token s",
        "mean x ours",
        "first x ours",
        "simulated mean s",
    )
    title = f"unequal: {len(jobs) - _LEARNING} chats on five workers, clocks {_FASTER:g} x faster"
    return Outcome("unequal", (Table(title, columns, tuple(rows)),), tuple(aims))


def _row(name: str, times: _Times, ours: _Times, simulated: Sequence[float]) -> tuple[str | float, ...]:
    mean, first = statistics.mean(times.end), statistics.mean(times.first)
    return (
        name,
        mean,
        percentile(times.end, 0.95),
        first,
        mean / statistics.mean(ours.end),
        first / statistics.mean(ours.first),
        statistics.mean(simulated),
    )


async def _side_by_side(jobs: Sequence[Job]) -> list[_Times]:
    """All pickers at once, each with a Redis and five workers of its own; they begin when all workers are there."""
    with contextlib.ExitStack() as stack:
        urls = [_start(stack, is_one=picker is None) for picker, _ in _PICKERS.values()]
        pickers = [picker or (lambda _: 0) for picker, _ in _PICKERS.values()]
        return await asyncio.gather(
            *(_replayed(jobs, pick, at) for pick, at in zip(pickers, urls, strict=True))
        )


def _start(stack: contextlib.ExitStack, *, is_one: bool) -> list[str]:
    """A Redis and a worker per machine, all in one fabric or each in its own; returns the URL of each."""
    server = stack.enter_context(EmbeddedBroker())
    urls = [f"{server.url}?fabric={'all' if is_one else node.name}" for node in _NODES]
    for url, node in zip(urls, _NODES, strict=True):
        stack.enter_context(worker("unequal", url, _CLUSTER, node.name, str(_FASTER)))
    return urls


async def _replayed(jobs: Sequence[Job], pick: Picker, urls: Sequence[str]) -> _Times:
    async with contextlib.AsyncExitStack() as clients:
        doors = {
            url: await clients.enter_async_context(AsyncClient(url, app="chat", cache=False))
            for url in dict.fromkeys(urls)
        }
        open_at = [0] * len(_NODES)
        began = time.monotonic()

        async def ask(job: Job) -> tuple[float, float]:
            await asyncio.sleep(max(0.0, began + job.arrival_s / _FASTER - time.monotonic()))
            at, sent = pick(open_at), time.monotonic()
            open_at[at] += 1
            first = 0.0
            text = message(job.prompt_tokens, job.output_tokens)
            async for _ in doors[urls[at]].submit(chat=text, model=MODEL, stream=True, timeout=None):
                first = first or time.monotonic()
            open_at[at] -= 1
            return (first - sent) * _FASTER, (time.monotonic() - sent) * _FASTER

        times = (await asyncio.gather(*map(ask, jobs)))[_LEARNING:]
    return _Times([first for first, _ in times], [end for _, end in times])
