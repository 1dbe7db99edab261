"""How fast one process gets jobs into Redis when it waits for none of them.

The clock stops when Redis has them all, not when `submit` has returned. No worker runs.
"""

from __future__ import annotations

import contextlib
import time

from sollol_broker.embedded import EmbeddedBroker

from .contenders import contender
from .report import Aim, Outcome, Table, median

_NAMES = ("fabric", "huey_queue", "dramatiq_queue", "floor")
_ROUNDS = 5
_JOBS = 10_000
_LOOK_SECONDS = 0.002
_PATIENCE_SECONDS = 60.0


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of jobs."""
    jobs = max(200, round(_JOBS * share))
    rates: dict[str, list[float]] = {name: [] for name in _NAMES}
    for _ in range(_ROUNDS):
        for name in _NAMES:
            rates[name].append(_submitted(name, jobs))
    table = Table(
        f"submits: {jobs:,} jobs from one process, without waiting for each",
        ("contender", "jobs/s", "x huey", "x dramatiq"),
        tuple(
            (
                name,
                median(rates[name]),
                _against(rates, name, "huey_queue"),
                _against(rates, name, "dramatiq_queue"),
            )
            for name in _NAMES
        ),
    )
    aim = Aim("submit rate", median(rates["fabric"]), 10_000, " jobs/s", higher_is_better=True)
    return Outcome("submits", (table,), (aim,))


def _against(rates: dict[str, list[float]], name: str, other: str) -> float:
    return median([each / its for each, its in zip(rates[name], rates[other], strict=True)])


def _submitted(name: str, jobs: int) -> float:
    with EmbeddedBroker() as server, contextlib.closing(contender(name).connect(server.url)) as sender:
        end = time.monotonic() + _PATIENCE_SECONDS
        began = time.monotonic()
        sender.send(jobs)
        while sender.accepted() < jobs:
            if time.monotonic() > end:
                raise RuntimeError(f"{name}: only {sender.accepted()} of {jobs} jobs reached Redis")
            time.sleep(_LOOK_SECONDS)
        return jobs / (time.monotonic() - began)
