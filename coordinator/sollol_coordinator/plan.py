"""Where a model is to run: a pure rule over what the nodes have free and how they are linked.

A group of several nodes is for capacity, not for speed: each token crosses the network a few times per member. So
the rule takes the fewest members that will do, and no group at all where one node can have the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from sollol_broker.model_facts import ModelFacts

from .estimate import NO_CORRECTION, Correction, DeviceNeed, Load, head_mib, needs_of

# Of what is free, this much is left so: other programs breathe, and the estimate errs.
_SPARED = 0.05
# More members than this are tried only when fewer will not do; beyond, each token would crawl.
_MOST_MEMBERS = 6
# The nodes with the best links and most memory are enough to choose from.
_MOST_CANDIDATES = 10
# What reading the weights once per token takes, MiB per ms: a middling GPU, and main memory of two channels.
_GPU_MIB_PER_MS, _CPU_MIB_PER_MS = 300.0, 25.0
# Round trips per token and remote member (measured: 4.4 for two).
_TRIPS_PER_MEMBER = 2.2
# A group must be faster than one node with part of the model in its main memory by this factor to be worth forming.
_WORTH_A_GROUP = 1.5
# Unknown links are taken for a usual wired network.
_USUAL_TRIP_MS = 0.5


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. `kind`: "cuda", "rocm", "vulkan", "metal", "sycl"; memory in MiB."""

    name: str
    kind: str
    free_mib: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One node as the plan sees it.

    Attributes:
        gpus: empty on a machine that computes on its CPU alone.
        ram_free_mib: that a model may use.
        llama_build: of its llama.cpp; "" = it has none, and can be neither head nor member.
        rpc_version: protocol of its rpc-server, (major, minor, patch); None = it has no rpc-server.
        has_file: whether the model's file lies there.
        is_busy: it runs jobs or belongs to a group.
        quarantined_because: why it must not be taken now; "" = it may.
    """

    name: str
    ram_free_mib: float
    gpus: tuple[Device, ...] = ()
    llama_build: str = ""
    rpc_version: tuple[int, int, int] | None = None
    has_file: bool = False
    is_busy: bool = False
    quarantined_because: str = ""

    @property
    def devices(self) -> tuple[Device, ...]:
        """What can hold layers for others: its GPUs; without any, its main memory."""
        return self.gpus or (Device("CPU", "cpu", self.ram_free_mib),)

    @property
    def free_mib(self) -> float:
        """Of all its devices."""
        return sum(device.free_mib for device in self.devices)


@dataclass(frozen=True, slots=True)
class Place:
    """Layers on one device of one node; `device` is "CPU" for main memory. The output layer counts as one."""

    node: str
    device: str
    kind: str
    need: DeviceNeed


@dataclass(frozen=True, slots=True)
class NothingNeeded:
    """Some node serves the model already."""

    node: str


@dataclass(frozen=True, slots=True)
class OneNode:
    """One node can have the whole model, or part of it in its main memory (`is_partial`)."""

    node: str
    places: tuple[Place, ...]
    ms_per_token: float
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Several nodes have it together.

    Attributes:
        head: runs llama-server; holds the file. members: the others, in the order of their layers.
        places: consecutive layers, in order; main memory of the head first, if it has any.
        head_mib: main memory that the head needs besides.
        ms_per_token: predicted, roughly.
    """

    head: str
    members: tuple[str, ...]
    places: tuple[Place, ...]
    head_mib: float
    ms_per_token: float


@dataclass(frozen=True, slots=True)
class Impossible:
    """It fits nowhere: for each node why, with what it lacks; `missing_mib` over all that could take part."""

    reasons: Mapping[str, str]
    missing_mib: float


Plan = NothingNeeded | OneNode | Group | Impossible


@dataclass(frozen=True, slots=True)
class Links:
    """Round trips in ms between nodes, by the pair of names; what is not known is taken for a usual network.

    An infinite one: they do not reach each other.
    """

    trips_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def trip_ms(self, one: str, other: str) -> float:
        """Between two nodes, whichever was measured."""
        return self.trips_ms.get((one, other), self.trips_ms.get((other, one), _USUAL_TRIP_MS))


USUAL_LINKS = Links()


def plan(
    facts: ModelFacts,
    load: Load,
    machines: Sequence[Machine],
    links: Links = USUAL_LINKS,
    *,
    serving: Sequence[str] = (),
    correction: Correction = NO_CORRECTION,
) -> Plan:
    """Decide.

    1. Somebody serves it: nothing is needed.
    2. One node that holds the file can have it on its GPUs (without any: in its main memory): the one with the most
       memory to spare.
    3. A group of the fewest members: heads by memory, members by link and memory. All must speak the head's protocol.
    4. One node with part of the layers in main memory; preferred to 3 unless the group is clearly faster.
    5. Otherwise it is impossible, and each node's shortfall is told.
    """
    if serving:
        return NothingNeeded(serving[0])  # 1
    able = [each for each in machines if not _excluded(each)]
    heads = sorted((each for each in able if each.has_file), key=lambda each: (-each.free_mib, each.name))
    asked = _Asked(facts, load, correction)
    for head in heads:  # 2
        if (found := asked.alone(head)) is not None:
            return found
    partial = min(
        filter(None, (asked.partly(head) for head in heads)), key=lambda each: each.ms_per_token, default=None
    )
    group = asked.together(heads, able, links)
    if partial is not None and (group is None or group.ms_per_token * _WORTH_A_GROUP > partial.ms_per_token):
        return partial  # 4
    return group or asked.shortfall(machines, heads)  # 3, 5


def serves_protocol(client: tuple[int, int, int], server: tuple[int, int, int]) -> bool:
    """Whether a head can use a member's rpc-server: the same major version, and no younger minor one."""
    return client[0] == server[0] and server[1] <= client[1]


def _excluded(machine: Machine) -> str:
    if machine.quarantined_because:
        return f"in quarantine: {machine.quarantined_because}"
    if machine.is_busy:
        return "busy: it runs jobs or belongs to a group"
    if not machine.llama_build:
        return "it has no llama.cpp: run `sollol setup-llama-cpp --build` there"
    return ""


@dataclass(frozen=True, slots=True)
class _Asked:
    facts: ModelFacts
    load: Load
    correction: Correction

    def alone(self, head: Machine) -> OneNode | None:
        """All layers on the head's GPUs; without GPUs, in its main memory."""
        if not head.gpus:
            return self._in_main_memory(head)
        if self._head_mib > _usable(head.ram_free_mib):
            return None
        counts = self._fill(head.gpus)
        if counts is None:
            return None
        places = self._places([(head.name, device) for device in head.gpus], counts)
        return OneNode(head.name, places, _ms_per_token(places, {}))

    def partly(self, head: Machine) -> OneNode | None:
        """As many of the last layers as the GPUs take; the first ones in main memory."""
        if not head.gpus:
            return None
        memory = Device("CPU", "cpu", max(0.0, head.ram_free_mib - self._head_mib))
        for in_memory in range(1, self.facts.layers + 1):
            counts = self._fill(head.gpus, skip=in_memory)
            if counts is None:
                continue
            places = self._places(
                [(head.name, device) for device in (memory, *head.gpus)], [in_memory, *counts]
            )
            if places[0].need.total_mib > _usable(memory.free_mib):
                return None
            return OneNode(head.name, places, _ms_per_token(places, {}), is_partial=True)
        return None

    def together(self, heads: Sequence[Machine], able: Sequence[Machine], links: Links) -> Group | None:
        """The group with the fewest members; among those the quickest, then the one with the larger head."""
        for size in range(1, _MOST_MEMBERS + 1):
            found = [
                group
                for head in heads
                if head.rpc_version is not None
                for members in self._candidates(head, able, links, size)
                if (group := self._group(head, members, links)) is not None
            ]
            if found:
                return min(found, key=lambda each: each.ms_per_token)
        return None

    def shortfall(self, machines: Sequence[Machine], heads: Sequence[Machine]) -> Impossible:
        """Why it fits nowhere."""
        need = sum(each.total_mib for each in needs_of(self.facts, self.load, [self.facts.layers + 1]))
        reasons, usable_by = {}, set()
        for each in machines:
            usable = _usable(each.free_mib)
            if why := _excluded(each):
                reasons[each.name] = why
            elif each.rpc_version is None and not each.has_file:
                reasons[each.name] = "it has no rpc-server and no file of the model"
            else:
                usable_by.add(each.name)
                lacks = f"{usable:,.0f} MiB usable of {need:,.0f} MiB needed: {max(0.0, need - usable):,.0f} MiB short"
                reasons[each.name] = lacks if each.has_file else f"{lacks}; the model's file is not there"
        if not heads:
            reasons = {name: f"{why}; no free node holds the model's file" for name, why in reasons.items()}
        usable = sum(_usable(each.free_mib) for each in machines if each.name in usable_by)
        return Impossible(reasons, max(0.0, need - usable))

    @property
    def _head_mib(self) -> float:
        return head_mib(self.facts, self.load)

    def _in_main_memory(self, head: Machine) -> OneNode | None:
        memory = Device("CPU", "cpu", max(0.0, head.ram_free_mib - self._head_mib))
        counts = self._fill([memory])
        if counts is None:
            return None
        places = self._places([(head.name, memory)], counts)
        return OneNode(head.name, places, _ms_per_token(places, {}))

    def _group(self, head: Machine, members: Sequence[Machine], links: Links) -> Group | None:
        """All members take part, or it is no group of theirs: each device gets the same part of what it has free."""
        here = head.gpus or (Device("CPU", "cpu", max(0.0, head.ram_free_mib - self._head_mib)),)
        if head.gpus and self._head_mib > _usable(head.ram_free_mib):
            return None
        owners = [(head.name, device) for device in here]
        owners += [(member.name, device) for member in members for device in member.devices]
        counts = self._fill([device for _, device in owners], is_even=True)
        if counts is None:
            return None
        places = self._places(owners, counts)
        if {member.name for member in members} - {place.node for place in places}:
            return None
        trips = {member.name: links.trip_ms(head.name, member.name) for member in members}
        names = tuple(member.name for member in members)
        return Group(head.name, names, places, self._head_mib, _ms_per_token(places, trips))

    def _candidates(
        self, head: Machine, able: Sequence[Machine], links: Links, size: int
    ) -> Iterator[tuple[Machine, ...]]:
        version = head.rpc_version
        others = [
            each
            for each in able
            if each is not head
            and links.trip_ms(head.name, each.name) < math.inf
            and each.rpc_version is not None
            and version is not None
            and serves_protocol(version, each.rpc_version)
        ]
        best = sorted(
            others, key=lambda each: (links.trip_ms(head.name, each.name), -each.free_mib, each.name)
        )
        largest = sorted(others, key=lambda each: (-each.free_mib, each.name))
        near = list(dict.fromkeys([*best[: _MOST_CANDIDATES // 2], *largest[: _MOST_CANDIDATES // 2]]))
        return combinations(sorted(near, key=best.index), size)

    def _places(self, owners: Sequence[tuple[str, Device]], counts: Sequence[int]) -> tuple[Place, ...]:
        kinds = [device.kind for _, device in owners]
        needs = needs_of(self.facts, self.load, counts, kinds, self.correction)
        return tuple(
            Place(node, device.name, device.kind, need)
            for (node, device), need in zip(owners, needs, strict=True)
            if need.layers
        )

    def _fill(self, devices: Sequence[Device], *, skip: int = 0, is_even: bool = False) -> list[int] | None:
        """Consecutive layers for each device from layer `skip` on; None when they do not fit.

        The first devices are filled first; `is_even` fills all to the same part of what they have free instead.
        """
        if not is_even:
            return self._filled(devices, 1.0, skip)
        low, high, best = 0.0, 1.0, self._filled(devices, 1.0, skip)
        if best is None:
            return None
        for _ in range(12):
            middle = (low + high) / 2
            counts = self._filled(devices, middle, skip)
            if counts is None:
                low = middle
            else:
                high, best = middle, counts
        return best

    def _filled(self, devices: Sequence[Device], part: float, skip: int) -> list[int] | None:
        left, counts, first = self.facts.layers + 1 - skip, [], skip
        for device in devices:
            count = self._most(device, _usable(device.free_mib) * part, first, left)
            counts.append(count)
            left, first = left - count, first + count
        return None if left else counts

    def _most(self, device: Device, mib: float, first: int, left: int) -> int:
        """How many layers from `first` on fit: by halving, since need grows with each."""
        low, high = 0, left
        while low < high:
            middle = (low + high + 1) // 2
            need = needs_of(self.facts, self.load, [first, middle], ["cpu", device.kind], self.correction)[1]
            if need.total_mib <= mib:
                low = middle
            else:
                high = middle - 1
        return low


def _usable(mib: float) -> float:
    return max(0.0, mib) * (1 - _SPARED)


def _ms_per_token(places: Sequence[Place], trips_ms: Mapping[str, float]) -> float:
    """Reading all weights once, and the trips to each remote member."""
    reading = sum(
        place.need.weights_mib / (_CPU_MIB_PER_MS if place.kind == "cpu" else _GPU_MIB_PER_MS)
        for place in places
    )
    return reading + _TRIPS_PER_MEMBER * sum(trips_ms.values())
