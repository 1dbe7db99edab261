"""How fast one worker process empties a long queue.

The jobs are there before the worker starts, and the sender has left: dramatiq keeps no results either.
The clock runs from the first finished job that is seen to the last, so that start-up does not count.
"""

from __future__ import annotations

import time

from sollol_broker.embedded import EmbeddedBroker

from .contenders import Contender, contender
from .report import Aim, Outcome, Table, median
from .worker import worker

_NAMES = ("fabric", "dramatiq_queue", "huey_queue")
_ROUNDS = 3
_JOBS = 10_000
_LOOK_SECONDS = 0.01
_PATIENCE_SECONDS = 120.0


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of jobs."""
    jobs = max(200, round(_JOBS * share))
    rates: dict[str, list[float]] = {name: [] for name in _NAMES}
    for _ in range(_ROUNDS):
        for name in _NAMES:
            rates[name].append(_drained(name, jobs))
    return _outcome(rates, jobs)


def _drained(name: str, jobs: int) -> float:
    """Jobs per second of one drain."""
    with EmbeddedBroker() as server:
        sender = contender(name).connect(server.url)
        sender.send(jobs)
        end = time.monotonic() + _PATIENCE_SECONDS
        while sender.accepted() < jobs and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        sender.close()
        with worker(name, server.url):
            return _watched(sender, jobs)


def _watched(sender: Contender, jobs: int) -> float:
    end = time.monotonic() + _PATIENCE_SECONDS
    first, began = 0, 0.0
    while (now := time.monotonic()) < end:
        done = sender.done()
        if done and not first:
            first, began = done, now
        if done >= jobs:
            return (done - first) / (now - began)
        time.sleep(_LOOK_SECONDS)
    raise RuntimeError(f"{sender.done()} of {jobs} jobs were done after {_PATIENCE_SECONDS:.0f} s")


def _outcome(rates: dict[str, list[float]], jobs: int) -> Outcome:
    against = {
        name: median([each / other for each, other in zip(values, rates["dramatiq_queue"], strict=True)])
        for name, values in rates.items()
    }
    table = Table(
        f"drain: {jobs:,} queued echo jobs, one worker process",
        ("contender", "jobs/s", "x dramatiq"),
        tuple((name, median(rates[name]), against[name]) for name in _NAMES),
    )
    aim = Aim("drain rate against dramatiq", against["fabric"], 1.5, " x", higher_is_better=True)
    return Outcome("drain", (table,), (aim,))
