"""What the notes for `explain` cost: a drain whose claims leave them, and one whose claims do not, in turns.

On a machine that does other things as well, rates differ by more than what is sought. So beside them stands what
Redis says of its own time: what the notes add to that, as a share of the time that a job takes in all.
"""

from __future__ import annotations

import time

import redis

from sollol_broker.embedded import EmbeddedBroker

from .contenders import fabric
from .report import Aim, Outcome, Table, median
from .worker import worker

_ROUNDS = 7
_JOBS = 6_000
_LOOK_SECONDS = 0.01
_PATIENCE_SECONDS = 120.0
_WAYS = ("with notes", "without")


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of jobs."""
    jobs = max(500, round(_JOBS * share))
    seen: dict[str, list[tuple[float, float]]] = {way: [] for way in _WAYS}
    for at in range(_ROUNDS):
        for way in _WAYS if at % 2 else reversed(_WAYS):
            seen[way].append(_drained(jobs, "" if way == _WAYS[0] else fabric.WITHOUT_NOTES))
    rates = {way: median([rate for rate, _ in each]) for way, each in seen.items()}
    micros = {way: median([us for _, us in each]) for way, each in seen.items()}
    added = median([one[1] - other[1] for one, other in zip(*seen.values(), strict=True)])
    table = Table(
        f"explain: {jobs:,} queued echo jobs, one worker process",
        ("claims", "jobs/s", "Redis us per job"),
        tuple((way, rates[way], micros[way]) for way in _WAYS),
    )
    share_added = added * rates[_WAYS[1]] / 1e6
    return Outcome(
        "explain", (table,), (Aim("what notes add to a job's time", 100 * share_added, 3.0, " %"),)
    )


def _drained(jobs: int, notes: str) -> tuple[float, float]:
    """Jobs per second, and microseconds of Redis per job."""
    with EmbeddedBroker() as server, redis.Redis.from_url(server.url) as look:
        sender = fabric.connect(server.url)
        sender.send(jobs)
        end = time.monotonic() + _PATIENCE_SECONDS
        while sender.accepted() < jobs and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        sender.close()
        with worker("fabric", server.url, fabric.BACKEND, notes):
            first, began, spent = sender.done(), time.monotonic(), _function_us(look)
            while (done := sender.done()) < jobs:
                if time.monotonic() > end:
                    raise RuntimeError(f"{done} of {jobs} jobs were done after {_PATIENCE_SECONDS:.0f} s")
                time.sleep(_LOOK_SECONDS)
            count = jobs - first
            return count / (time.monotonic() - began), (_function_us(look) - spent) / count


def _function_us(look: redis.Redis) -> float:
    return float(look.info("commandstats")["cmdstat_fcall"]["usec"])
