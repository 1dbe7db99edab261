"""Policies that decide on arrival: each machine has a line of its own, and a job stays in the one it was sent to."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from .machine import Machine
from .simulate import World

# Of the newest answer in SOLLOL's mean latency and success rate.
_NEWEST = 0.2


class Push(ABC):
    """Sends each job to the machine with the least `cost`, of those not known to be down."""

    def __init__(self, world: World) -> None:
        self.wakes = 0
        self.world = world
        self.lines: list[deque[int]] = [deque() for _ in world.machines]
        self._known_down: set[int] = set()

    @abstractmethod
    def cost(self, job: int, machine: Machine) -> float:
        """The lower, the rather the job is sent there."""

    def pick(self, job: int, machines: Sequence[Machine]) -> Machine:
        """The machine for a job."""
        return min(machines, key=lambda machine: (self.cost(job, machine), machine.index))

    def in_flight(self, machine: Machine) -> int:
        """Jobs sent there that have not ended."""
        return machine.busy + len(self.lines[machine.index])

    def submit(self, job: int) -> None:
        """Send a job to a machine."""
        model = self.world.model_of(job)
        fitting = [each for each in self.world.machines if model.memory_gb <= each.spec.memory_gb]
        up = [each for each in fitting if each.index not in self._known_down]
        machine = self.pick(job, up or fitting)
        self.lines[machine.index].append(job)
        self._start(machine)

    def freed(self, machine: Machine) -> None:
        """Go on with its line."""
        self._known_down.discard(machine.index)
        self._start(machine)

    def finished(self, job: int, machine: Machine) -> None:  # noqa: B027  # a hook
        """Nothing to learn."""

    def went_down(self, machine: Machine) -> None:
        """Send what waited there to others."""
        self._known_down.add(machine.index)
        waiting = list(self.lines[machine.index])
        self.lines[machine.index].clear()
        for job in waiting:
            self.submit(job)

    def _start(self, machine: Machine) -> None:
        line = self.lines[machine.index]
        while line and machine.can_start(self.world.model_of(line[0])):
            self.world.start(line.popleft(), machine)


class RoundRobin(Push):
    """One after the other."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._turn = 0

    def cost(self, job: int, machine: Machine) -> float:
        """How far off its turn is."""
        return (machine.index - self._turn) % len(self.world.machines)

    def pick(self, job: int, machines: Sequence[Machine]) -> Machine:
        """The one whose turn it is."""
        machine = super().pick(job, machines)
        self._turn = machine.index + 1
        return machine


class LeastConnectionsPerSlot(Push):
    """The fewest jobs in flight per slot."""

    def cost(self, job: int, machine: Machine) -> float:
        """Jobs in flight per slot."""
        return (self.in_flight(machine) + 1) / machine.spec.slots


class TwoChoices(Push):
    """The less busy of two drawn at random."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._rng = random.Random(2)

    def cost(self, job: int, machine: Machine) -> float:
        """Jobs in flight per slot."""
        return self.in_flight(machine) / machine.spec.slots

    def pick(self, job: int, machines: Sequence[Machine]) -> Machine:
        """The better of two."""
        return super().pick(job, self._rng.sample(list(machines), min(2, len(machines))))


class SollolFormula(Push):
    """score = 100 x success rate / (1 + latency penalty) x GPU bonus / (1 + load penalty), as SOLLOL's README has it.

    The penalties are the ones that favour it most: latency is each machine's own mean, learned from its answers,
    relative to the fastest one's, and load is its jobs in flight per slot, x 1.5.

    Args:
        period_s: age of its data at most: they are looked up so often; 0 = always fresh.
    """

    def __init__(self, world: World, period_s: float = 0.0) -> None:
        super().__init__(world)
        self._period = period_s
        usual = 1363 / 3500 + 116 / 105
        self._latency = [
            (1363 / each.spec.prefill + 116 / each.spec.decode) / usual for each in world.machines
        ]
        self._seen: list[int] = [0] * len(world.machines)
        if period_s > 0:
            self._refresh()

    def cost(self, job: int, machine: Machine) -> float:
        """Its score, negated."""
        in_flight = self._seen[machine.index] if self._period > 0 else self.in_flight(machine)
        bonus = 1.5 if machine.spec.has_gpu else 1.0
        load_penalty = 1.5 * in_flight / machine.spec.slots
        return -100 / (1 + self._latency[machine.index]) * bonus / (1 + load_penalty)

    def _refresh(self) -> None:
        self._seen = [self.in_flight(machine) for machine in self.world.machines]
        self.world.at(self.world.now + self._period, self._refresh)
