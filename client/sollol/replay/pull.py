"""Policies by which machines take jobs: one queue per model, and workers that are woken when a job comes.

The waking is the fabric's own: the cheapest idle worker, else one that said at which backlog it would help; a
worker that declines passes the bell on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Callable, Sequence

from sollol_broker.claim_rule import (
    DEFAULT_WEIGHTS,
    TYPICAL_OUTPUT,
    TYPICAL_PROMPT,
    Offer,
    PaceClass,
    Share,
    Waiting,
    Weights,
    choose,
    classes_of,
    share_of,
)
from sollol_broker.words import Priority

from .cluster import ModelSpec
from .machine import Machine
from .order import Lengths, Line, LineRule
from .simulate import World

# Jobs looked at per queue.
LOOKED_AT = 32


class Pull(ABC):
    """Queues, and who is woken; `look` decides what a worker takes."""

    def __init__(self, world: World) -> None:
        self.wakes = 0
        self.world = world
        # Per model: (rank, order of coming, job).
        self.queues: dict[str, list[tuple[float, int, int]]] = {name: [] for name in world.models}
        self._idle: dict[str, dict[int, float]] = {name: {} for name in world.models}
        self._armed: dict[str, dict[int, float]] = {name: {} for name in world.models}
        self._came = 0
        self._ranks: dict[int, float] = {}
        self._parked: set[int] = set()  # machines that wait for a bell
        self._looks: dict[int, float] = {}  # machine -> when it looks again

    @abstractmethod
    def rank(self, job: int) -> float:
        """The job's score in its queue; asked once."""

    @abstractmethod
    def look(self, machine: Machine) -> int | None:
        """The job that a worker with a free slot takes, if any."""

    def refusal(self, machine: Machine, model: ModelSpec) -> tuple[float, float]:
        """Having taken none: at which backlog of a model it would, and after how many ms it looks again."""
        return math.inf, math.inf

    def taken(self, job: int) -> None:  # noqa: B027  # a hook
        """A job has left the line."""

    def finished(self, job: int, machine: Machine) -> None:  # noqa: B027  # a hook
        """A job has its answer."""

    def submit(self, job: int) -> None:
        """Put a job in line, at its old place if it had one, and wake one worker."""
        if job not in self._ranks:
            self._ranks[job] = self.rank(job)
        self._came += 1
        model = self.world.model_of(job).name
        insort(self.queues[model], (self._ranks[job], self._came, job))
        self._ring(model)

    def freed(self, machine: Machine) -> None:
        """Let a worker take what it wants."""
        self._claim(machine)

    def went_down(self, machine: Machine) -> None:
        """Its share is gone: one who declined may have to help now."""
        self._step_out(machine)
        for model in self.queues:
            self._rouse(model)

    def startable(self, machine: Machine) -> list[ModelSpec]:
        """Models with jobs in line that a machine could start now."""
        return [
            model
            for name, model in self.world.models.items()
            if self.queues[name] and machine.can_start(model)
        ]

    def _claim(self, machine: Machine) -> None:
        while machine.free > 0:
            job = self.look(machine)
            if job is None:
                self._stand_by(machine)
                return
            name = self.world.model_of(job).name
            queue = self.queues[name]
            queue.remove(next(each for each in queue if each[2] == job))
            self.taken(job)
            self.world.start(job, machine)
            self.changed(machine)
        self._step_out(machine)

    def changed(self, machine: Machine) -> None:  # noqa: B027  # a hook
        """What a machine holds in memory may have changed."""

    def _stand_by(self, machine: Machine) -> None:
        was_parked = machine.index in self._parked
        self._parked.add(machine.index)
        again = math.inf
        for name, model in self.world.models.items():
            if model.memory_gb > machine.spec.memory_gb:
                continue
            idle, armed = self._idle[name], self._armed[name]
            if not self.queues[name]:
                armed.pop(machine.index, None)
                idle[machine.index] = self._usual_ms(machine, model)
                continue
            was_rung = was_parked and machine.index not in idle and machine.index not in armed
            idle.pop(machine.index, None)
            armed.pop(machine.index, None)
            if was_rung:
                self._ring(name)
            armed[machine.index], look = self.refusal(machine, model)
            again = min(again, look)
        if again < math.inf:
            self._look_again(machine, self.world.now + max(again, 1.0) / 1000)

    def _step_out(self, machine: Machine) -> None:
        if machine.index not in self._parked:
            return
        self._parked.discard(machine.index)
        for name, queue in self.queues.items():
            self._idle[name].pop(machine.index, None)
            self._armed[name].pop(machine.index, None)
            if queue:  # it may have been woken for this model and then taken another: pass the bell on
                self._ring(name)

    def _usual_ms(self, machine: Machine, model: ModelSpec) -> float:
        spec = machine.spec
        seconds = TYPICAL_PROMPT / spec.prefill + TYPICAL_OUTPUT / spec.decode
        slow = 1 + 2 * spec.slowdown * machine.busy
        return 1000 * (machine.load_cost(model, self.world.now) + model.work * seconds * slow)

    def _ring(self, model: str) -> bool:
        idle, armed = self._idle[model], self._armed[model]
        if idle:
            return self._wake(model, min(idle, key=lambda index: (idle[index], index)))
        backlog = self.backlog(model)
        ready = [(need, index) for index, need in armed.items() if need <= backlog]
        if ready:
            return self._wake(model, min(ready)[1])
        return False

    def _rouse(self, model: str) -> None:
        if self.queues[model] and not self._ring(model) and self._armed[model]:
            armed = self._armed[model]
            self._wake(model, min(armed, key=lambda index: (armed[index], index)))

    def _wake(self, model: str, index: int) -> bool:
        self._idle[model].pop(index, None)
        self._armed[model].pop(index, None)
        machine = self.world.machines[index]
        if not machine.is_up:
            return self._ring(model)  # nobody has noticed yet; as if another bell were rung after a while
        self.wakes += 1
        self.world.at(self.world.now, lambda: self._claim(machine) if machine.free > 0 else None)
        return True

    def backlog(self, model: str) -> int:
        """Jobs in line, as armed workers count them."""
        return len(self.queues[model])

    def _look_again(self, machine: Machine, when: float) -> None:
        planned = self._looks.get(machine.index, math.inf)
        if self.world.now < planned <= when:
            return
        self._looks[machine.index] = when

        def look() -> None:
            if self._looks.get(machine.index) == when:
                del self._looks[machine.index]
                if machine.free > 0:
                    self.wakes += 1
                    self._claim(machine)

        self.world.at(when, look)


class FifoPull(Pull):
    """Any worker with room takes the oldest job that it can start."""

    def rank(self, job: int) -> float:
        """When it came."""
        return self.world.jobs[job].arrival_s

    def look(self, machine: Machine) -> int | None:
        """The oldest."""
        heads = [self.queues[model.name][0] for model in self.startable(machine)]
        return min(heads)[2] if heads else None


class ClaimRule(Pull):
    """The fabric's own rule: workers take what they are comparatively best at, in fair order.

    Args:
        weights: of the rule. line: how the queues are ordered.
    """

    def __init__(
        self,
        world: World,
        weights: Weights = DEFAULT_WEIGHTS,
        make_lengths: Callable[[World], Lengths] = Lengths,
        line: LineRule | None = None,
    ) -> None:
        super().__init__(world)
        self._weights = weights
        self._lengths = make_lengths(world)
        self._line = line or LineRule()
        self._expected: dict[int, float] = {}
        self._gone: set[int] = set()
        self._shares: dict[str, dict[int, Share]] = {}
        self._others: dict[tuple[str, int], tuple[PaceClass, ...]] = {}
        for machine in world.machines:
            self._advertise(machine)
        self._lines = {name: Line(self._line) for name in world.models}
        for name in world.models:
            self._tell_pace(name)

    def rank(self, job: int) -> float:
        """Its turn among the applications."""
        each = self.world.jobs[job]
        self._expected[job] = self._lengths.expect(each)
        return self._lines[each.model].enter(job, each, self._expected[job])

    def taken(self, job: int) -> None:  # a hook
        """The queue's virtual time moves on."""
        self._lines[self.world.jobs[job].model].leave(job)

    def finished(self, job: int, machine: Machine) -> None:  # a hook
        """What was used counts, not what was expected."""
        each = self.world.jobs[job]
        self._lengths.learn(each)
        self._lines[each.model].settle(job, each)

    def went_down(self, machine: Machine) -> None:
        """Withdraw its share."""
        self._gone.add(machine.index)
        for name in self._shares:
            self._shares[name].pop(machine.index, None)
            self._forget(name)
        super().went_down(machine)

    def freed(self, machine: Machine) -> None:
        """Let the worker take what it wants."""
        if machine.index in self._gone or not machine.busy:
            self._gone.discard(machine.index)
            self._advertise(machine)
        super().freed(machine)

    def changed(self, machine: Machine) -> None:  # a hook
        """Its share of models may have become warm or cold."""
        if len(self.world.models) > 1:
            self._advertise(machine)

    def look(self, machine: Machine) -> int | None:
        """What `choose` says of the heads of the queues."""
        offers: list[Offer] = []
        waiting: list[Waiting] = []
        numbers: list[int] = []
        for model in self.startable(machine):
            heads = self.queues[model.name][:LOOKED_AT]
            waiting += self._waiting(heads, len(offers))
            numbers += [job for _, _, job in heads]
            offers.append(self._offer(machine, model))
        index = choose(offers, waiting, self._weights).index
        return None if index is None else numbers[index]

    def refusal(self, machine: Machine, model: ModelSpec) -> tuple[float, float]:
        """As `choose` says of this model's jobs alone."""
        if not machine.can_start(model):
            return math.inf, math.inf
        heads = self._waiting(self.queues[model.name][:LOOKED_AT], 0)
        choice = choose([self._offer(machine, model)], heads, self._weights)
        return choice.backlog_needed, choice.look_again_ms

    def _waiting(self, heads: Sequence[tuple[float, int, int]], offer: int) -> list[Waiting]:
        now, out = self.world.now, []
        for position, (rank, _, job) in enumerate(heads):
            each = self.world.jobs[job]
            waited_ms = 1000 * (now - each.arrival_s)
            is_batch = each.priority <= Priority.BATCH
            expected = self._expected[job]
            out.append(
                Waiting(
                    offer,
                    position,
                    each.prompt_tokens,
                    expected,
                    waited_ms,
                    is_batch=is_batch,
                    behind_ms=rank - heads[0][0],
                )
            )
        return out

    def _offer(self, machine: Machine, model: ModelSpec) -> Offer:
        spec, now = machine.spec, self.world.now
        return Offer(
            load_ms=1000 * machine.load_cost(model, now),
            prompt_ms=1000 * model.work / spec.prefill,
            output_ms=1000 * model.work / spec.decode,
            slowdown=spec.slowdown,
            busy=machine.busy,
            waiting=len(self.queues[model.name]),
            backlog=self.backlog(model.name),
            settled_ms=1000 * (now - machine.settled_at),
            others=self._others_of(machine, model.name),
        )

    def _others_of(self, machine: Machine, model: str) -> tuple[PaceClass, ...]:
        key = (model, machine.index)
        if key not in self._others:
            shares = self._shares[model]
            self._others[key] = classes_of([each for index, each in shares.items() if index != machine.index])
        return self._others[key]

    def _advertise(self, machine: Machine) -> None:
        spec = machine.spec
        for name, model in self.world.models.items():
            if model.memory_gb > spec.memory_gb:
                continue
            load_s = 0.0 if machine.holds(name) else machine.load_cost(model, self.world.now)
            share = share_of(
                load_ms=1000 * load_s,
                prompt_ms=1000 * model.work / spec.prefill,
                output_ms=1000 * model.work / spec.decode,
                slowdown=spec.slowdown,
                slots=spec.slots,
            )
            shares = self._shares.setdefault(name, {})
            if shares.get(machine.index) != share:
                shares[machine.index] = share
                self._forget(name)

    def _forget(self, model: str) -> None:
        for key in [key for key in self._others if key[0] == model]:
            del self._others[key]
        if hasattr(self, "_lines"):
            self._tell_pace(model)

    def _tell_pace(self, model: str) -> None:
        self._lines[model].set_pace(classes_of(list(self._shares.get(model, {}).values())))
