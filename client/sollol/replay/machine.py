"""One machine in virtual time: slots that share its pace, and memory that holds some models.

Seconds throughout. Jobs are numbers; the machine knows what work they have left, not why they are here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from enum import Enum

from .cluster import ModelSpec, NodeSpec


class Step(Enum):
    """What a job on a machine reaches."""

    FIRST_TOKEN = 0
    END = 1


class Machine:
    """Jobs share the pace: with b of them each runs at 1 / (1 + slowdown x (b - 1)) of it.

    A model is read into memory before its first job starts; the least recently used ones without a job make
    room. A job that waits for that holds a slot but slows nobody down.
    """

    def __init__(self, spec: NodeSpec, index: int) -> None:
        self.spec = spec
        self.index = index
        self.is_up = True
        self.jobs: dict[int, str] = {}  # job -> model
        self.loads = 0
        self.settled_at = -math.inf  # since no model was read into memory
        self.busy_seconds = 0.0  # slots x seconds
        self.version = 0  # a planned event with an older one is void
        self._resident: dict[str, tuple[ModelSpec, float]] = {}  # model -> when it is ready; by last use
        self._users: dict[str, int] = {}  # model -> jobs here
        self._batch: set[int] = set()
        self._steps: list[tuple[float, int, int]] = []  # at which work done, Step, job
        self._done = 0.0  # seconds of work that each job of the batch has got since the beginning
        self._at = 0.0

    @property
    def busy(self) -> int:
        """Slots taken."""
        return len(self.jobs)

    @property
    def free(self) -> int:
        """Slots left; none while it is down."""
        return self.spec.slots - len(self.jobs) if self.is_up else 0

    def holds(self, model: str) -> bool:
        """Whether a model is in memory, or on its way there."""
        return model in self._resident

    def load_seconds(self, model: ModelSpec, now: float) -> float:
        """Until a model is ready, if a job asks for it now."""
        if model.name in self._resident:
            return max(0.0, self._resident[model.name][1] - now)
        return self._read_seconds(model)

    def load_cost(self, model: ModelSpec, now: float) -> float:
        """What it is to ask for a model now: its loading, and one reloading of what has to make room for it."""
        if model.name in self._resident:
            return self.load_seconds(model, now)
        lacking = model.memory_gb - self.spec.memory_gb
        lacking += sum(each.memory_gb for each, _ in self._resident.values())
        loaded = [(each.memory_gb, self._read_seconds(each)) for each, _ in self._resident.values()]
        enough = [seconds for size, seconds in loaded if size >= lacking]
        again = (min(enough) if enough else max(seconds for _, seconds in loaded)) if lacking > 0 else 0.0
        return self._read_seconds(model) + again

    def preload(self, model: ModelSpec) -> None:
        """Hold a model from the beginning."""
        self._resident[model.name] = (model, 0.0)

    def can_start(self, model: ModelSpec) -> bool:
        """Whether there is a slot, and memory besides the models that are at work."""
        if self.free <= 0:
            return False
        if model.name in self._resident:
            return True
        used = sum(self._resident[name][0].memory_gb for name, users in self._users.items() if users)
        return used + model.memory_gb <= self.spec.memory_gb

    def take(self, job: int, model: ModelSpec, now: float) -> float:
        """Give a job a slot; returns when its model is ready for it."""
        if model.name not in self._resident:
            self._make_room(model)
            self.loads += 1
            self._resident[model.name] = (model, now + self.load_seconds(model, now))
            self.settled_at = self._resident[model.name][1]
        self._resident[model.name] = self._resident.pop(model.name)
        self._advance(now)
        self.jobs[job] = model.name
        self._users[model.name] = self._users.get(model.name, 0) + 1
        return max(now, self._resident[model.name][1])

    def begin(self, job: int, prefill: float, decode: float, now: float) -> None:
        """Start the work of a job that was taken; seconds of work when alone."""
        self._advance(now)
        self._batch.add(job)
        heapq.heappush(self._steps, (self._done + prefill, Step.FIRST_TOKEN.value, job))
        heapq.heappush(self._steps, (self._done + prefill + decode, Step.END.value, job))

    def next_step(self) -> float:
        """When the next step is reached, if nothing else happens."""
        if not self._steps:
            return math.inf
        return self._at + max(0.0, self._steps[0][0] - self._done) * self._stretch()

    def reached(self, now: float) -> Iterator[tuple[int, Step]]:
        """Take off all steps that are reached at `now`."""
        self._advance(now)
        while self._steps and self._steps[0][0] <= self._done + 1e-9:
            _, step, job = heapq.heappop(self._steps)
            if step == Step.END.value:
                self._batch.discard(job)
                self._leave(job)
            yield job, Step(step)

    def crash(self, now: float) -> list[int]:
        """Lose all jobs and all memory; returns the jobs."""
        self._advance(now)
        lost = list(self.jobs)
        self.is_up = False
        self.jobs.clear()
        self._resident.clear()
        self._users.clear()
        self._batch.clear()
        self._steps.clear()
        return lost

    def _read_seconds(self, model: ModelSpec) -> float:
        return self.spec.load_s + model.memory_gb / self.spec.load_gb_s

    def _make_room(self, model: ModelSpec) -> None:
        used = sum(each.memory_gb for each, _ in self._resident.values())
        for name in list(self._resident):
            if used + model.memory_gb <= self.spec.memory_gb:
                return
            if not self._users.get(name):
                used -= self._resident.pop(name)[0].memory_gb

    def _leave(self, job: int) -> None:
        self._users[self.jobs.pop(job)] -= 1

    def _stretch(self) -> float:
        return 1.0 + self.spec.slowdown * max(0, len(self._batch) - 1)

    def _advance(self, now: float) -> None:
        passed = now - self._at
        if passed > 0:
            self.busy_seconds += passed * len(self.jobs)
            if self._batch:
                self._done += passed / self._stretch()
            self._at = now
