"""A replay in virtual time: jobs arrive, a policy hands them to machines, and the clock jumps from event to event.

Every run of the same jobs, cluster, policy and failures gives the same figures.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .cluster import BadCluster, Cluster, ModelSpec
from .machine import Machine, Step
from .trace import Job


@dataclass(frozen=True, slots=True)
class Failures:
    """How machines die and come back.

    Attributes:
        mean_up_s: until a machine dies. down_s: until it is back. noticed_s: until others know; its jobs start
            anew then.
    """

    mean_up_s: float = 900.0
    down_s: float = 120.0
    noticed_s: float = 10.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What became of each job, by its place in the trace.

    Attributes:
        first_s: from arrival to the first token. end_s: from arrival to the end. Both in seconds.
        waited_s: from arrival to the (last) start. node: index of the machine.
        loads: models read into memory, after each machine's first; one model alone is there from the beginning.
        utilisation: share of all slots' time, until the last arrival.
        wakes: times that a worker looked at the queues without having ended a job.
        lost_s: slots' time spent on attempts that a dying machine took along.
    """

    policy: str
    jobs: Sequence[Job]
    first_s: Sequence[float]
    end_s: Sequence[float]
    waited_s: Sequence[float]
    node: Sequence[int]
    loads: int
    utilisation: float
    wakes: int = 0
    lost_s: float = 0.0


class Policy(Protocol):
    """Who gives which job to which machine, and when. Jobs are numbers, places in the trace."""

    wakes: int

    def submit(self, job: int) -> None:
        """A job arrives, or comes back from a machine that died."""

    def freed(self, machine: Machine) -> None:
        """A machine may have room now: a job ended there, or it came up."""

    def finished(self, job: int, machine: Machine) -> None:
        """A job has its answer; called before `freed`."""

    def went_down(self, machine: Machine) -> None:
        """It is noticed that a machine died; its running jobs are submitted again right after this."""


class World:
    """What a policy sees and can do: the clock, the machines, starting a job, being called later."""

    def __init__(self, cluster: Cluster, jobs: Sequence[Job]) -> None:
        self.cluster = cluster
        self.jobs = jobs
        self.machines = [Machine(spec, index) for index, spec in enumerate(cluster.nodes)]
        self.now = 0.0
        self.models: dict[str, ModelSpec] = {job.model: cluster.model(job.model) for job in jobs}
        if len(self.models) == 1:  # what has run for a while; several models have to find their places
            (model,) = self.models.values()
            for machine in self.machines:
                if model.memory_gb <= machine.spec.memory_gb:
                    machine.preload(model)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._started = [math.nan] * len(jobs)
        self._first = [math.nan] * len(jobs)
        self._end = [math.nan] * len(jobs)
        self._node = [-1] * len(jobs)
        self._attempt = [0] * len(jobs)
        self._left = len(jobs)
        self._lost = 0.0
        self._policy: Policy | None = None

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Have `call` made at that time."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, call))

    def model_of(self, job: int) -> ModelSpec:
        """The model that a job asks for."""
        return self.models[self.jobs[job].model]

    def start(self, job: int, machine: Machine) -> None:
        """Give a job to a machine that has room for it."""
        model = self.model_of(job)
        self._started[job], self._node[job] = self.now, machine.index
        self._attempt[job] += 1
        ready = machine.take(job, model, self.now)
        if ready <= self.now:
            self._begin(job, machine, self._attempt[job])
        else:
            attempt = self._attempt[job]
            self.at(ready, lambda: self._begin(job, machine, attempt))

    def run(self, name: str, policy: Policy, failures: Failures | None) -> Run:
        """Play the whole trace."""
        self._policy = policy
        for model in self.models.values():
            if all(model.memory_gb > machine.spec.memory_gb for machine in self.machines):
                raise BadCluster(
                    f"model {model.name!r} needs {model.memory_gb:g} GB, and no machine has that: "
                    "describe it under `models`, or a larger machine under `nodes`"
                )
        for job, each in enumerate(self.jobs):
            self.at(each.arrival_s, lambda job=job: policy.submit(job))  # type: ignore[misc]
        if failures is not None:
            rng = random.Random(failures.seed)
            for machine in self.machines:
                self._plan_failure(machine, failures, random.Random(rng.random()))
        for machine in self.machines:
            policy.freed(machine)
        last, busy_at_last = self.jobs[-1].arrival_s, -1.0
        while self._left and self._events:
            when, _, call = heapq.heappop(self._events)
            if busy_at_last < 0 and when > last:
                busy_at_last = self._busy_seconds()
            self.now = when
            call()
        if self._left:
            raise RuntimeError(f"{name}: {self._left} jobs were never served")  # only a policy of ours could
        slots = sum(spec.slots for spec in self.cluster.nodes)
        arrivals = [job.arrival_s for job in self.jobs]
        return Run(
            name,
            self.jobs,
            [first - arrived for first, arrived in zip(self._first, arrivals, strict=True)],
            [end - arrived for end, arrived in zip(self._end, arrivals, strict=True)],
            [started - arrived for started, arrived in zip(self._started, arrivals, strict=True)],
            self._node,
            sum(max(0, machine.loads - 1) for machine in self.machines),
            max(0.0, busy_at_last) / (slots * last) if last > 0 else 1.0,
            policy.wakes,
            self._lost,
        )

    def _busy_seconds(self) -> float:
        return sum(machine.busy_seconds for machine in self.machines)

    def _begin(self, job: int, machine: Machine, attempt: int) -> None:
        if self._attempt[job] != attempt or job not in machine.jobs:
            return  # the machine has died meanwhile
        each, model = self.jobs[job], self.model_of(job)
        prefill = model.work * each.prompt_tokens / machine.spec.prefill
        machine.begin(job, prefill, model.work * each.output_tokens / machine.spec.decode, self.now)
        self._plan_step(machine)

    def _plan_step(self, machine: Machine) -> None:
        machine.version += 1
        when, version = machine.next_step(), machine.version
        if when < math.inf:
            self.at(max(when, self.now), lambda: self._step(machine, version))

    def _step(self, machine: Machine, version: int) -> None:
        if machine.version != version:
            return
        assert self._policy is not None  # noqa: S101  # steps happen within run()
        has_room = False
        for job, step in list(machine.reached(self.now)):
            if step is Step.FIRST_TOKEN:
                self._first[job] = self.now
            else:
                self._end[job] = self.now
                self._left -= 1
                has_room = True
                self._policy.finished(job, machine)
        if has_room:
            self._policy.freed(machine)
        self._plan_step(machine)

    def _plan_failure(self, machine: Machine, failures: Failures, rng: random.Random) -> None:
        self.at(
            self.now + rng.expovariate(1 / failures.mean_up_s), lambda: self._fail(machine, failures, rng)
        )

    def _fail(self, machine: Machine, failures: Failures, rng: random.Random) -> None:
        lost = machine.crash(self.now)
        machine.version += 1
        for job in lost:
            self._lost += self.now - self._started[job]
            self._attempt[job] += 1
        self.at(self.now + failures.noticed_s, lambda: self._notice(machine, lost))
        self.at(self.now + failures.down_s, lambda: self._repair(machine, failures, rng))

    def _notice(self, machine: Machine, lost: Sequence[int]) -> None:
        assert self._policy is not None  # noqa: S101  # as above
        self._policy.went_down(machine)
        for job in lost:
            self._policy.submit(job)

    def _repair(self, machine: Machine, failures: Failures, rng: random.Random) -> None:
        assert self._policy is not None  # noqa: S101  # as above
        machine.is_up = True
        self._policy.freed(machine)
        self._plan_failure(machine, failures, rng)


def replay(
    cluster: Cluster,
    jobs: Sequence[Job],
    name: str,
    make_policy: Callable[[World], Policy],
    failures: Failures | None = None,
) -> Run:
    """Play a trace on a cluster under one policy."""
    world = World(cluster, jobs)
    return world.run(name, make_policy(world), failures)
