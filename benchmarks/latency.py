"""From submit to the answer in hand, one job at a time, with one worker process each.

All workers stand by at once and the contenders take turns, so that a noisy moment hits all of them.
"""

from __future__ import annotations

import contextlib
import time

from sollol_broker.embedded import EmbeddedBroker

from .contenders import WITH_RESULTS, Contender, contender
from .report import Aim, Outcome, Table, median, percentile
from .worker import worker

_NAMES = ("fabric", "floor", "huey_queue", "dramatiq_queue")
_ROUNDS = 20
_PER_ROUND = 100
# dramatiq looks for work with pauses of up to a second; a few jobs are enough to see that.
_PER_ROUND_DRAMATIQ = 10


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of rounds."""
    with EmbeddedBroker() as server, contextlib.ExitStack() as stack:
        asking: dict[str, Contender] = {}
        for name in _NAMES:
            options = (WITH_RESULTS,) if name == "dramatiq_queue" else ()
            stack.enter_context(worker(name, server.url, *options))
            asking[name] = stack.enter_context(contextlib.closing(contender(name).connect(server.url)))
            _asked(asking[name], _count(name))
        rounds: dict[str, list[list[float]]] = {name: [] for name in _NAMES}
        for _ in range(max(2, round(_ROUNDS * share))):
            for name in _NAMES:
                rounds[name].append(_asked(asking[name], _count(name)))
    return _outcome(rounds)


def _count(name: str) -> int:
    return _PER_ROUND_DRAMATIQ if name == "dramatiq_queue" else _PER_ROUND


def _asked(asked: Contender, count: int) -> list[float]:
    took_ms = []
    for at in range(count):
        began = time.perf_counter()
        asked.ask(f"job {at}")
        took_ms.append((time.perf_counter() - began) * 1000)
    return took_ms


def _outcome(rounds: dict[str, list[list[float]]]) -> Outcome:
    p50 = {name: median([percentile(each, 0.5) for each in taken]) for name, taken in rounds.items()}
    p99 = {
        name: percentile([took for each in taken for took in each], 0.99) for name, taken in rounds.items()
    }
    pairs = {
        name: median(
            [
                percentile(each, 0.5) / percentile(low, 0.5)
                for each, low in zip(taken, rounds["floor"], strict=True)
            ]
        )
        for name, taken in rounds.items()
    }
    rows = tuple((name, p50[name], p99[name], pairs[name], p99[name] / p99["floor"]) for name in _NAMES)
    table = Table(
        "latency: submit -> answer, sequential, echo",
        ("contender", "p50 ms", "p99 ms", "p50 x floor", "p99 x floor"),
        rows,
    )
    aims = (
        Aim("latency p50 against the floor", pairs["fabric"], 1.6, " x"),
        Aim("latency p50 against huey", pairs["fabric"] / pairs["huey_queue"], 1.0, " x"),
    )
    return Outcome("latency", (table,), aims)
