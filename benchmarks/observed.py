"""What observing costs: workers that count, note and tell, and workers that do none of it, in turns.

With: the history, the reasons for `explain`, and the live log. Without: none of them. On a machine that does other
things as well, rates differ by more than what is sought. So beside them stands how much of a processor a job takes, in
the worker and in Redis together: what observing adds to that. The best drain counts. What a page that is looked at
costs Redis is in `benchmarks.page`; its own work is done wherever one likes.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import psutil

from sollol_broker.embedded import EmbeddedBroker

from .contenders import fabric
from .report import Aim, Outcome, Table
from .worker import worker

_ROUNDS = 7
_JOBS = 6_000
_TOKENS = 50
# Streams are longer work.
_STREAM_SHARE = 10
_LOOK_SECONDS = 0.01
_PATIENCE_SECONDS = 120.0
_ON, _OFF = "", fabric.WITHOUT_ALL
# One by one, as LLM servers make them.
_STREAMED = f"echo://?slots=64&models=echo&tokens={_TOKENS}&token_ms=1"


@dataclass(frozen=True, slots=True)
class _Drain:
    rate: float
    cpu_us: float


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of jobs."""
    jobs = max(500, round(_JOBS * share))
    rows: list[tuple[str | float, ...]] = []
    aims = []
    for what, backend, count in (
        ("echo jobs", fabric.BACKEND, jobs),
        (f"streams of {_TOKENS} tokens", _STREAMED, jobs // _STREAM_SHARE),
    ):
        seen: dict[str, list[_Drain]] = {_ON: [], _OFF: []}
        for at in range(_ROUNDS):
            for way in (_ON, _OFF) if at % 2 else (_OFF, _ON):
                seen[way].append(_drained(count, backend, way))
        for way, name in ((_ON, "observed"), (_OFF, "not observed")):
            rows.append((f"{what}, {name}", max(each.rate for each in seen[way]), _least_us(seen[way])))
        cost = _least_us(seen[_ON]) / _least_us(seen[_OFF])
        rate = max(each.rate for each in seen[_ON]) / max(each.rate for each in seen[_OFF])
        rows.append((f"{what}, observed / not", rate, cost))
        aims.append(
            Aim(f"what observing adds to a job's processor time, {what}", 100 * (cost - 1), 3.0, " %")
        )
    title = f"observed: {jobs:,} queued jobs, one worker process"
    table = Table(title, ("jobs", "jobs/s", "processor us per job"), tuple(rows))
    return Outcome("observed", (table,), tuple(aims))


def _drained(jobs: int, backend: str, without: str) -> _Drain:
    """Jobs per second, and microseconds of a processor per job."""
    with EmbeddedBroker() as server, contextlib.closing(fabric.connect(server.url)) as sender:
        for _ in range(jobs):
            sender.client.submit(
                chat="hi", model=fabric.MODEL, wait_for_node=True, stream=backend == _STREAMED
            )
        end = time.monotonic() + _PATIENCE_SECONDS
        while sender.accepted() < jobs and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        with worker("fabric", server.url, backend, without) as process:
            processes = [psutil.Process(process.pid), psutil.Process(server.pid)]
            first, began, spent = sender.done(), time.monotonic(), _cpu_seconds(processes)
            while (done := sender.done()) < jobs:
                if time.monotonic() > end:
                    raise RuntimeError(f"{done} of {jobs} jobs were done after {_PATIENCE_SECONDS:.0f} s")
                time.sleep(_LOOK_SECONDS)
            count = jobs - first
            used = _cpu_seconds(processes) - spent
            return _Drain(count / (time.monotonic() - began), used * 1e6 / count)


def _least_us(drains: list[_Drain]) -> float:
    """Of the drain that others disturbed least."""
    return min(each.cpu_us for each in drains)


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)
