"""Carries out the leader's orders on this node: one group at a time, each order once, none of an older term.

This is where a group's lease on a node is fenced: the agent is the resource, and it compares term and group.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from sollol_broker.broker import Broker
from sollol_broker.errors import BackendError, InvalidJob, SollolError
from sollol_broker.inbox import EntryFields
from sollol_broker.orders import Order, OrderReply, ReplyKind, Verb, send_reply
from sollol_broker.periodic import Periodic
from sollol_broker.url import BrokerUrl

from ..backends import LlamaServerBackend
from ..backends.protocol import Backend
from ..hardware import Hardware
from ..llama_binaries import find_llama_server
from ..model_files import ModelFile, ModelFiles
from .head import Head, Member, MemberFailed, Split
from .machine import LlamaBuild, capped, find_build, list_devices
from .part import Part, threads_for

log = logging.getLogger(__name__)

# An order may overtake the first writing of the record.
_MOST_MISSED = 6
_FILES_SECONDS = 30.0
_ORDERS_KEPT = 256


async def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """How this node takes part in groups.

    Attributes:
        files: model files that it could be the head of.
        address: where members' tunnels listen and heads come from; "" = the address from which Redis is reached.
        threads: of a device that is a CPU; None = all but one, at most 8.
        record_seconds: between two looks for the group's record, which the coordinator renews; when six in a row
            find none, the group is nobody's and ends.
        on_reserve, on_end: called when a group takes this node over, and when it gives it back.
    """

    files: ModelFiles = field(default_factory=ModelFiles)
    address: str = ""
    threads: int | None = None
    record_seconds: float = 5.0
    on_reserve: Callable[[], Awaitable[None]] = _nothing
    on_end: Callable[[], Awaitable[None]] = _nothing


class Host(Protocol):
    """What the agent does for a group."""

    async def lend_lanes(self, group: str, drain_seconds: float) -> None:
        """Run nothing but this group's jobs from now on."""

    async def take_lanes_back(self) -> None:
        """Go on as before."""

    def add_backend(self, backend: Backend) -> None:
        """Front a group's server."""

    async def remove_backend(self, backend: Backend) -> None:
        """Front it no more."""

    def is_busy(self, backend: Backend | None) -> bool:
        """Whether a job runs on that server."""

    @property
    def hardware(self) -> Hardware | None:
        """As read last."""

    async def tell(self) -> None:
        """Advertise now."""


class OrderDesk:
    """Takes orders from the inbox and replies to each."""

    def __init__(
        self, broker: Broker, url: BrokerUrl, host: Host, *, node: str, settings: GroupSettings
    ) -> None:
        self._broker = broker
        self._url = url
        self._host = host
        self._node = node
        self._settings = settings
        self._build = LlamaBuild()
        self._files: dict[str, ModelFile] = {}
        # As adverts tell it; looked up beforehand, as a name may take seconds and an advert is due every few.
        self._local_address = "127.0.0.1"
        self._part: Part | None = None
        # How the last group ended here, if it did so badly: for the coordinator to read.
        self._fault: dict[str, str] = {}
        self._backend: Backend | None = None
        self._term = 0
        self._reply_to = ""
        self._last_order = ""
        self._seen: OrderedDict[str, OrderReply | None] = OrderedDict()
        self._once = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        # Looks in a row that found no record of the group.
        self._missed = 0
        self._looking = Periodic(
            self._look, name="looking for llama.cpp and model files", seconds=_FILES_SECONDS, at_once=True
        )
        self._watching = Periodic(
            self._look_for_record, name="looking for the group's record", seconds=settings.record_seconds
        )

    @property
    def group(self) -> str:
        """The group that has this node; "" = none."""
        return self._part.group if self._part is not None else ""

    @property
    def address(self) -> str:
        """Where other nodes reach this one."""
        return self._settings.address or self._local_address

    def advert(self) -> dict[str, Any]:
        """What the node's advert says of it; files that are served anyway included."""
        return {
            "build": self._build.build,
            "rpc_version": list(self._build.rpc_version or ()),
            "address": self.address,
            "lent_to": self.group,
            "fault": self._fault,
            "files": {name: file.facts.to_json() for name, file in self._files.items()},
        }

    def start(self) -> None:
        """Look at what this machine has, from time to time, and after the group's record."""
        self._looking.start()
        self._watching.start()

    async def stop(self) -> None:
        """Leave the group, if there is one: its other nodes will notice."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(
            self._looking.stop(), self._watching.stop(), *self._tasks, return_exceptions=True
        )
        await self._end("the agent stops")

    def on_entry(self, entry: EntryFields) -> None:
        """An order has come."""
        try:
            order = Order.from_entry(entry)
        except InvalidJob as error:
            log.warning("%s", error)
            return
        if order.id in self._seen:
            if (reply := self._seen[order.id]) is not None:
                self._own(self._send(order.reply_to, reply))
            return
        self._seen[order.id] = None
        while len(self._seen) > _ORDERS_KEPT:
            self._seen.popitem(last=False)
        self._own(self._carry_out(order))

    async def _carry_out(self, order: Order) -> None:
        try:
            if order.verb is Verb.END:
                data = await self._end_for(order)  # not behind a load that it is to break off
            else:
                async with self._once:
                    data = await self._obey(order)
            reply = OrderReply(order.id, ReplyKind.DONE, data)
        except SollolError as error:
            blamed = error.node if isinstance(error, MemberFailed) else self._node
            reply = OrderReply(order.id, ReplyKind.FAILED, {"error": str(error), "node": blamed})
        except Exception as error:
            log.exception("order %s of group %s: a mistake of ours", order.verb, order.group)
            reply = OrderReply(
                order.id, ReplyKind.FAILED, {"error": f"the agent failed ({type(error).__name__})"}
            )
        self._seen[order.id] = reply
        await self._send(order.reply_to, reply)

    async def _obey(self, order: Order) -> dict[str, Any]:
        self._check(order)
        self._reply_to, self._last_order = order.reply_to, order.id
        if order.verb is Verb.RESERVE:
            return await self._reserve(order)
        if self._part is None:
            raise BackendError(f"{self._node} is not reserved for group {order.group}")
        if order.verb is Verb.LEND:
            threads = threads_for(os.cpu_count() or 1, self._settings.threads)
            certificate = str(order.arguments["certificate"])
            is_local = order.arguments.get("head_address") == self.address
            return await self._part.lend(self.address, certificate, threads=threads, is_local=is_local)
        return await self._lead(order, self._part)

    def _check(self, order: Order) -> None:
        """Compare term and group.

        1. A term older than one seen: that leader has been replaced.
        2. Another group has this node. A newer leader must end that one first.
        """
        if order.term < self._term:
            raise BackendError(f"{self._node} has heard of a later term: this order is stale")  # 1
        self._term = order.term
        if self._part is not None and self._part.group != order.group:
            raise BackendError(f"{self._node} belongs to group {self._part.group}")  # 2

    async def _reserve(self, order: Order) -> dict[str, Any]:
        if self._part is None:
            self._part = Part(
                order.group,
                node=self._node,
                on_lost=self._lost,
                is_working=lambda: self._host.is_busy(self._backend),
            )
            await self._host.lend_lanes(order.group, float(order.arguments.get("drain_seconds", 10.0)))
            await self._settings.on_reserve()
            await self._host.tell()
        hardware = self._host.hardware
        devices = []
        if hardware is not None and hardware.gpus:
            devices = capped(await asyncio.to_thread(list_devices, find_llama_server()), hardware)
        return {
            "address": self.address,
            "certificate": self._part.identity.certificate,
            "devices": [{"name": d.name, "kind": d.kind, "free_mib": d.free_mib} for d in devices],
            "ram_free_mib": hardware.ram_available_mib if hardware is not None else 0,
            "build": self._build.build,
            "rpc_version": list(self._build.rpc_version or ()),
        }

    async def _lead(self, order: Order, part: Part) -> dict[str, Any]:
        if self._backend is not None:
            return {"report": {}}
        arguments, model = order.arguments, str(order.arguments["model"])
        file = self._files.get(model)
        if file is None or self._build.rpc_version is None:
            raise BackendError(f"{self._node} has no file of {model}, or no llama.cpp with RPC")
        split = Split(
            int(arguments["in_memory"]),
            tuple((str(name), int(count)) for name, count in arguments["own"]),
            tuple(Member.from_data(each) for each in arguments["members"]),
        )
        head = Head(
            node=self._node,
            model=model,
            path=file.path,
            split=split,
            identity=part.identity,
            version=self._build.rpc_version,
            logs=part.logs,
            slots=int(arguments["slots"]),
            context_tokens=int(arguments["context_tokens"]),
            threads=threads_for(os.cpu_count() or 1, self._settings.threads),
            progress=lambda share, left: self._tell_progress(order, share, left),
        )
        report = await part.lead(head)
        if self._part is not part:
            raise BackendError(f"group {part.group} was ended while it was being loaded")
        self._backend = LlamaServerBackend(head.url, model=model)
        self._host.add_backend(self._backend)
        await self._host.tell()
        return {"report": report, "links": head.links}

    def _tell_progress(self, order: Order, share: float, left_seconds: float) -> None:
        data = {"loaded": round(share, 3), "left_seconds": round(left_seconds, 1)}
        self._own(self._send(order.reply_to, OrderReply(order.id, ReplyKind.PROGRESS, data)))

    async def _end_for(self, order: Order) -> dict[str, Any]:
        if order.term < self._term:
            raise BackendError(f"{self._node} has heard of a later term: this order is stale")
        self._term = order.term
        if self._part is not None and self._part.group == order.group:
            await self._end(f"the coordinator has ended group {order.group}")
        return {}

    async def _lost(self, why: str, blamed: str) -> None:
        """Something of our part died: tell whoever gave the last order, and be a usual node again."""
        reply_to, order, group = self._reply_to, self._last_order, self.group
        self._fault = {"group": group, "node": blamed, "why": why}
        await self._end(why)
        data = {"lost": group, "node": self._node, "error": f"{self._node}: {why}"}
        await self._send(reply_to, OrderReply(order, ReplyKind.FAILED, data))

    async def _end(self, why: str) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        log.info("group %s: %s leaves it: %s", part.group, self._node, why)
        await part.stop()
        if self._backend is not None:
            backend, self._backend = self._backend, None
            await self._host.remove_backend(backend)
        await self._settings.on_end()
        await self._host.take_lanes_back()

    async def _send(self, reply_to: str, reply: OrderReply) -> None:
        try:
            await send_reply(self._broker, reply_to, reply)
        except SollolError as error:
            log.warning("order %s: the reply could not be sent: %s", reply.order, error)

    async def _look(self) -> None:
        self._local_address = await asyncio.to_thread(_local_address, self._url)
        self._build = await find_build() if not self._build.build else self._build
        self._files = await asyncio.to_thread(self._settings.files.look)

    async def _look_for_record(self) -> None:
        """End a group that nobody keeps up any more: its coordinator is gone, and no other has taken over."""
        group = self.group
        if not group:
            self._missed = 0
            return
        is_kept = await self._broker.link.call("EXISTS", self._broker.keys.group(group))
        self._missed = 0 if is_kept else self._missed + 1
        if self._missed >= _MOST_MISSED:
            await self._end("its record has run out: no coordinator keeps it up")

    def _own(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _local_address(url: BrokerUrl) -> str:
    """The address of this machine on the way to Redis; loopback when Redis is on this machine."""
    host = url.hosts[0][0] if url.hosts else "127.0.0.1"
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0])
    except (OSError, IndexError):
        return "127.0.0.1"
