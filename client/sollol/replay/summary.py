"""What a run comes to: means and tails, of all jobs, per priority and per application."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .simulate import Run
from .trace import Job

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds."""

    mean: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Group:
    """Some jobs of a run. `first`: from arrival to the first token, `end`: to the end."""

    jobs: int
    first: Spread
    end: Spread


@dataclass(frozen=True, slots=True)
class Summary:
    """A run.

    Attributes:
        swaps: models read into memory, after each machine's first.
        lost_seconds: of slots, spent on what a dying machine took along. wakes: bells rung for it.
    """

    policy: str
    all: Group
    by_priority: Mapping[int, Group]
    by_app: Mapping[str, Group]
    swaps: int
    utilisation: float
    lost_seconds: float
    wakes: int


def summarise(run: Run) -> Summary:
    """Sum a run up; the groups with most jobs come first."""
    return Summary(
        policy=run.policy,
        all=_group(run, range(len(run.jobs))),
        by_priority=dict(sorted(_grouped(run, lambda job: job.priority).items(), reverse=True)),
        by_app=_grouped(run, lambda job: job.app),
        swaps=run.loads,
        utilisation=round(run.utilisation, 4),
        lost_seconds=round(run.lost_s, 3),
        wakes=run.wakes,
    )


def _grouped(run: Run, key: Callable[[Job], K]) -> dict[K, Group]:
    members: dict[K, list[int]] = {}
    for at, job in enumerate(run.jobs):
        members.setdefault(key(job), []).append(at)
    return {
        name: _group(run, found) for name, found in sorted(members.items(), key=lambda each: -len(each[1]))
    }


def _group(run: Run, members: Sequence[int]) -> Group:
    first, end = ([times[at] for at in members] for times in (run.first_s, run.end_s))
    return Group(len(members), _spread(first), _spread(end))


def _spread(seconds: Sequence[float]) -> Spread:
    ranked = sorted(seconds)
    p95, p99 = (ranked[int(share * len(ranked))] for share in (0.95, 0.99))
    return Spread(*(round(value, 4) for value in (statistics.mean(ranked), p95, p99)))
