"""What we want of the routing, beside what was got: geometric means over the rows of a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sollol.replay.policies import CLAIRVOYANT, FIFO, FORMULA, OURS
from sollol.replay.summary import Summary


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario and what each policy made of it; `alone`: each application's p95 with the machines for itself."""

    kind: str
    jobs: str
    cluster: str
    load: float
    runs: Mapping[str, Summary]
    alone: Mapping[str, float]

    def times(self, policy: str, figure: Callable[[Summary], float]) -> float:
        """Our figure as a multiple of a policy's."""
        return figure(self.runs[OURS]) / figure(self.runs[policy])

    @property
    def worst_app(self) -> float:
        """The largest p95 of an application beside the flood, as a multiple of its p95 alone."""
        found = self.runs[OURS].by_app
        return max(found[app].end.p95 / alone for app, alone in self.alone.items())


@dataclass(frozen=True, slots=True)
class Aim:
    """One of them. `got` is to be at most `wanted`."""

    what: str
    wanted: float
    got: float

    @property
    def is_reached(self) -> bool:
        """Whether it is."""
        return self.got <= self.wanted


def mean(run: Summary) -> float:
    """Mean time to the end."""
    return run.all.end.mean


def p95(run: Summary) -> float:
    """The slowest twentieth."""
    return run.all.end.p95


def first(run: Summary) -> float:
    """Mean time to the first token."""
    return run.all.first.mean


def geometric(values: Iterable[float]) -> float:
    """Geometric mean."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def aims(rows: Sequence[Row]) -> list[Aim]:
    """All of them, those missed first."""
    found: list[Aim] = []
    for kind, policy, figure, loads, wanted in (
        ("one model", FORMULA, mean, (0.8, 0.95), 0.72),
        ("one model", FORMULA, first, (0.8, 0.95), 0.60),
        ("one model", FIFO, p95, (0.8, 0.95), 1.05),
        ("one model", CLAIRVOYANT, mean, (0.8,), 1.15),
        ("several models", FORMULA, mean, (0.8, 0.95), 0.25),
        ("several models", FIFO, mean, (0.8, 0.95), 0.80),
        ("several models", FIFO, p95, (0.8, 0.95), 1.05),
    ):
        for load in loads:
            some = [row.times(policy, figure) for row in rows if (row.kind, row.load) == (kind, load)]
            if some:
                what = f"{kind}, {load:.0%} load: {figure.__name__} / {policy}"
                found.append(Aim(what, wanted, geometric(some)))
    for load in sorted({row.load for row in rows if row.kind == "flood"}):
        worst = max(row.worst_app for row in rows if (row.kind, row.load) == ("flood", load))
        found.append(
            Aim(f"beside a flood, others' load {load:.0%}: worst application's p95 / alone", 2.0, worst)
        )
    return sorted(found, key=lambda aim: -aim.got / aim.wanted)
