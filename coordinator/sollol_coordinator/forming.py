"""Forms a group, step by step, and ends one: reserve, plan again with what is really free, lend, lead.

Each step is an order that carries the leader's term; whatever goes wrong, all nodes are told to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.groups import GroupState, GroupView
from sollol_broker.leader import write_group
from sollol_broker.model_facts import ModelFacts
from sollol_broker.orders import Verb, set_formable

from .decide import Rules
from .estimate import NO_CORRECTION, Correction
from .orderly import NotLeading, OrderFailed, Orders
from .plan import Device, Group, Impossible, Machine, OneNode, Place, plan

log = logging.getLogger(__name__)

GROUP_TTL_MS = 60_000
_BROKEN_TTL_MS = 30_000
FORMABLE_TTL_MS = 15_000
_MIB = 1024 * 1024
# Running jobs may end before a node is taken over; then they are handed back.
_DRAIN_SECONDS = 10.0
_RESERVE_SECONDS, _LEND_SECONDS = 60.0, 60.0
# An agent ends its part at once; one that does not answer may be dead, and the next group must not wait for it.
_END_SECONDS = 2.5
# As `Head` allows for a load, and a little for the connection.
_LEAD_SECONDS, _LEAD_SECONDS_PER_GIB = 330.0, 20.0


class CannotForm(SollolError):
    """A group could not be formed.

    Attributes:
        node: that is to blame; "" = none in particular.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


@dataclass(slots=True)
class Former:
    """One try to form one group.

    Args:
        group: its record so far; `model` and `parts` are set, the head first.
    """

    broker: Broker
    orders: Orders
    leader: str
    term: int
    group: GroupView
    facts: ModelFacts
    rules: Rules
    correction: Correction = NO_CORRECTION

    async def form(self) -> GroupView:
        """Form it; its record tells how far it is.

        Raises:
            CannotForm: it did not work out; every node has been told to end.
            NotLeading: the term is over; the next leader cleans up.
        """
        try:
            return await self._form()
        except NotLeading:
            raise
        except (OrderFailed, CannotForm) as error:
            await end_parts(self.orders, self.group)
            await self._write(replace(self.group, state=GroupState.BROKEN, why=str(error)), _BROKEN_TTL_MS)
            raise CannotForm(str(error), error.node) from error

    async def _form(self) -> GroupView:
        id, parts = self.group.id, self.group.parts
        await self._say(f"forming group {id}: reserving {', '.join(name for name, _ in parts)}")
        told = await self._all(Verb.RESERVE, parts, {"drain_seconds": _DRAIN_SECONDS}, _RESERVE_SECONDS)
        found = self._planned_again(told)
        await self._keep(found)
        head, *members = self.group.parts
        await self._say(f"forming group {id}: starting rpc-servers")
        at_head = told[head[0]]
        lend = {"certificate": str(at_head["certificate"]), "head_address": str(at_head["address"])}
        lent = await self._all(Verb.LEND, members, lend, _LEND_SECONDS)
        self.group = replace(self.group, state=GroupState.LOADING)
        await self._say(f"forming group {id}: loading {self.group.model}")
        data = await self.orders.give(
            *head,
            Verb.LEAD,
            id,
            self._lead_arguments(told, lent, found.places),
            timeout_seconds=_LEAD_SECONDS + _LEAD_SECONDS_PER_GIB * self.facts.weight_bytes / 1024**3,
            progress=self._loaded,
        )
        report, links = dict(data.get("report", {})), dict(data.get("links", {}))
        ready = replace(self.group, state=GroupState.READY, report=report, links=links, progress="")
        await self._write(ready, GROUP_TTL_MS)
        return ready

    async def _keep(self, found: Group | OneNode) -> None:
        """Go on with the nodes that are needed after all; the others are free again."""
        needed = {self.group.head, *(place.node for place in found.places)}
        spare = tuple(part for part in self.group.parts if part[0] not in needed)
        await end_parts(self.orders, replace(self.group, parts=spare))
        parts = tuple(part for part in self.group.parts if part[0] in needed)
        self.group = replace(self.group, parts=parts, places=tuple(_as_data(each) for each in found.places))

    def _planned_again(self, told: Mapping[str, Mapping[str, Any]]) -> Group | OneNode:
        """The plan with what the reserved nodes really have free now; some of them may not be needed after all."""
        machines = [
            _machine_of(name, told[name], has_file=name == self.group.head) for name, _ in self.group.parts
        ]
        found = plan(self.facts, self.rules.load, machines, correction=self.correction)
        if isinstance(found, Impossible):
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(found.reasons.items()))
            raise CannotForm(f"less is free than was advertised ({reasons})")
        assert isinstance(found, Group | OneNode)  # noqa: S101  # nobody serves it
        return found

    def _lead_arguments(
        self,
        told: Mapping[str, Mapping[str, Any]],
        lent: Mapping[str, Mapping[str, Any]],
        places: Sequence[Place],
    ) -> dict[str, Any]:
        own = [place for place in places if place.node == self.group.head]
        return {
            "model": self.group.model,
            "in_memory": sum(place.need.layers for place in own if place.device == "CPU"),
            "own": [[place.device, place.need.layers] for place in own if place.device != "CPU"],
            "members": [
                {
                    "node": name,
                    "address": str(told[name]["address"]),
                    "port": int(lent[name]["port"]),
                    "certificate": str(told[name]["certificate"]),
                    "is_local": bool(lent[name].get("is_local", False)),
                    **_share_of(name, told[name]["devices"], len(lent[name]["devices"]), places),
                }
                for name, _ in self.group.parts[1:]
            ],
            "slots": self.rules.slots,
            "context_tokens": self.rules.context_tokens,
        }

    def _loaded(self, data: Mapping[str, Any]) -> None:
        share, left = float(data.get("loaded", 0.0)), float(data.get("left_seconds", 0.0))
        text = f"forming group {self.group.id}: loading {100 * share:.0f} %"
        task = asyncio.ensure_future(self._say(f"{text}, ~{left:.0f} s" if left else text))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _all(
        self,
        verb: Verb,
        parts: Sequence[tuple[str, str]],
        arguments: Mapping[str, Any],
        timeout_seconds: float,
    ) -> dict[str, Mapping[str, Any]]:
        group = self.group.id
        replies = await asyncio.gather(
            *(
                self.orders.give(*part, verb, group, arguments, timeout_seconds=timeout_seconds)
                for part in parts
            )
        )
        return {name: reply for (name, _), reply in zip(parts, replies, strict=True)}

    async def _say(self, progress: str) -> None:
        """Write down how far it is, and tell those who wait."""
        await self._write(replace(self.group, progress=progress), GROUP_TTL_MS)
        await set_formable(
            self.broker,
            self.leader,
            self.term,
            self.group.model,
            ttl_ms=FORMABLE_TTL_MS,
            ok=True,
            reasons={},
            note=progress,
        )

    async def _write(self, group: GroupView, ttl_ms: int) -> None:
        if not await write_group(
            self.broker, self.leader, self.term, group.id, ttl_ms=ttl_ms, fields=group.to_fields()
        ):
            raise NotLeading("another coordinator leads now")


async def end_parts(orders: Orders, group: GroupView) -> None:
    """Tell every node of a group to end; one that does not answer ends by itself when the record has run out."""

    async def end(node: str, worker: str) -> None:
        try:
            await orders.give(node, worker, Verb.END, group.id, {}, timeout_seconds=_END_SECONDS)
        except OrderFailed as error:
            log.warning("group %s: %s", group.id, error)

    await asyncio.gather(*(end(node, worker) for node, worker in group.parts))


def _machine_of(name: str, told: Mapping[str, Any], *, has_file: bool) -> Machine:
    """A reserved node with what it says is free. GPUs that its llama.cpp cannot use are none."""
    gpus = tuple(
        Device(str(each["name"]), str(each["kind"]), float(each["free_mib"])) for each in told["devices"]
    )
    version = [int(part) for part in told["rpc_version"]]
    return Machine(
        name,
        float(told["ram_free_mib"]),
        gpus,
        llama_build=str(told["build"]),
        rpc_version=(version[0], version[1], version[2]) if len(version) == 3 else None,
        has_file=has_file,
    )


def _share_of(
    node: str, devices: Sequence[Mapping[str, Any]], lent: int, places: Sequence[Place]
) -> dict[str, Any]:
    """Layers of each device that a member lends, in their order, and how much will be sent there."""
    own = {place.device: place.need for place in places if place.node == node}
    names = [str(each["name"]) for each in devices] or ["CPU"]
    layers = [own[name].layers if name in own else 0 for name in names]
    return {
        "layers": layers + [0] * (lent - len(layers)),
        "weights_bytes": sum(need.weights_mib for need in own.values()) * _MIB,
    }


def _as_data(place: Place) -> dict[str, Any]:
    return {
        "node": place.node,
        "device": place.device,
        "layers": place.need.layers,
        "mib": round(place.need.total_mib, 1),
    }
