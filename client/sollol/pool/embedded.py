"""The fabric of a pool that has no Redis: a private one, and one worker per node, in the background of this process.

The workers are tasks in one thread, not processes: ten nodes cost no more memory than one, a node is added or
removed at once, and nothing can be left running when the process is gone, however it ended. The private Redis is a
process; it ends with ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sollol_broker import controls
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import BackendError, BrokerUnavailable, SollolError
from sollol_broker.operations import Operations
from sollol_broker.periodic import Periodic
from sollol_broker.portal import Portal
from sollol_broker.url import parse

from .address import USUAL_PRIORITY, NodeAddress

if TYPE_CHECKING:
    from sollol_worker_agent.agent import Agent
    from sollol_worker_agent.backends.protocol import Backend

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
# A node that hangs joins when it answers; the others must not wait for it.
_JOIN_SECONDS = 2.0
# But without any node the first call would fail, and on a busy machine a worker takes seconds to start.
_FIRST_SECONDS = 15.0


class EmbeddedFabric:
    """A private Redis and one worker in front of each node. All methods block; any thread may call them."""

    def __init__(self, nodes: Iterable[NodeAddress]) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.users = 0
        self._broker = EmbeddedBroker(appendonly=False)  # nobody comes back for its data
        self._portal: Portal | None = None
        self._agents: dict[str, Agent] = {}
        self._joining: dict[str, asyncio.Task[None]] = {}
        self._watch = Periodic(self._keep_redis, name="the pool's private Redis", seconds=_WATCH_SECONDS)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self._broker.url

    @property
    def is_ours(self) -> bool:
        """False after a fork, in the child: it lives in the parent."""
        return self._pid == os.getpid()

    def start(self) -> None:
        """Start all; does nothing when it runs.

        Raises:
            BrokerUnavailable: no Redis or Valkey is installed here, or what a worker needs is not.
        """
        with self._lock:
            if self._portal is not None:
                return
            self._broker.start()
            self._portal = Portal("sollol-pool-workers")
            try:
                self._portal.run(self._begin())
            except BaseException:
                self._stop()
                raise

    def add(self, node: NodeAddress) -> None:
        """Front one more node; one that is known is left as it is."""
        with self._lock:
            if node.name not in self.nodes and self._portal is not None:
                self._portal.run(self._join([node]))
            self.nodes.setdefault(node.name, node)

    def remove(self, node: NodeAddress) -> None:
        """Front a node no more; what runs there goes to others."""
        with self._lock:
            self.nodes.pop(node.name, None)
            if self._portal is not None:
                self._portal.run(self._drop(node.name))

    def stop(self) -> None:
        """End all; what still waits or runs gets no answer. Of a parent process', nothing is touched."""
        if self.is_ours:
            with self._lock:
                self._stop()

    def abandon(self) -> None:
        """The same when the interpreter ends, which gives no time for goodbyes: no thread can be started then."""
        if self.is_ours:
            if self._portal is not None:
                self._portal.run(_cancel_all())
                self._portal.close()
            self._broker.stop()

    def _stop(self) -> None:
        portal, self._portal = self._portal, None
        if portal is not None:
            try:
                portal.run(self._leave())
            except (
                SollolError,
                RuntimeError,
            ):  # as the interpreter ends, for instance, when no thread can be started
                portal.run(_cancel_all())
            portal.close()
        self._broker.stop()

    async def _begin(self) -> None:
        self._watch.start()
        await self._join(self.nodes.values())

    async def _join(self, nodes: Iterable[NodeAddress]) -> None:
        """Start the workers of these nodes; those whose server does not answer soon join later."""
        tasks = {node.name: asyncio.create_task(self._start_worker(node)) for node in nodes}
        self._joining |= tasks
        if tasks:
            done, _ = await asyncio.wait(tasks.values(), timeout=_JOIN_SECONDS)
            if not self._agents:
                done, _ = await asyncio.wait(
                    tasks.values(), timeout=_FIRST_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            for task in done:
                task.result()

    async def _start_worker(self, node: NodeAddress) -> None:
        try:
            from sollol_worker_agent.agent import Agent
            from sollol_worker_agent.config import WorkerConfig
        except ModuleNotFoundError as error:
            raise BrokerUnavailable(
                f"a pool without a Redis runs workers of its own, which need {error.name}: pip install "
                "'sollol[local]', or give the fabric's Redis in SOLLOL_REDIS_URL"
            ) from error
        config = WorkerConfig(
            node=node.name,
            elsewhere="" if node.is_here else node.host,
            slots=node.slots or _usual_slots(node),
        )
        backend = await _backend(node)
        agent = Agent(parse(self.url), config, [backend])
        try:
            await agent.start()
        except BaseException:
            await backend.close()
            await agent.broker.close()
            raise
        self._agents[node.name] = agent
        if node.priority != USUAL_PRIORITY:
            wanted = controls.changes(priority=node.priority)
            await Operations(agent.broker).control(node.name, wanted)

    async def _drop(self, name: str) -> None:
        if (joining := self._joining.pop(name, None)) is not None:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
        if (agent := self._agents.pop(name, None)) is not None:
            await agent.stop(drain_seconds=0)

    async def _leave(self) -> None:
        await self._watch.stop()
        tasks = list(self._joining.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        agents, self._agents, self._joining = list(self._agents.values()), {}, {}
        await asyncio.gather(*(agent.stop(drain_seconds=0, announce=False) for agent in agents))

    async def _keep_redis(self) -> None:
        """The private Redis may be killed, by the system when memory is short: start it again, empty as it is."""
        if not self._broker.is_running:
            log.warning("the pool's private Redis has died and is started again")
            await asyncio.to_thread(self._broker.start)


async def _backend(node: NodeAddress) -> Backend:
    """What answers there; while nobody does, Ollama is expected."""
    from sollol_worker_agent.backends.discovery import connect
    from sollol_worker_agent.backends.ollama import OllamaBackend

    try:
        return await connect(node.url, os.environ.get("SOLLOL_BACKEND_API_KEY"))
    except BackendError:
        return OllamaBackend(node.url, os.environ.get("SOLLOL_BACKEND_API_KEY"))


def _usual_slots(node: NodeAddress) -> int | None:
    """As Ollama itself is told on this machine; it cannot be asked."""
    told = os.environ.get("OLLAMA_NUM_PARALLEL", "") if node.is_here else ""
    return int(told) if told.isascii() and told.isdigit() and int(told) > 0 else None


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Fabrics:
    """The embedded fabrics of this process: pools with the same nodes share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fabrics: dict[frozenset[NodeAddress], EmbeddedFabric] = {}

    def borrow(self, nodes: Iterable[NodeAddress]) -> EmbeddedFabric:
        """One that fronts these nodes; it runs once `start` has returned. Give it back."""
        key = frozenset(nodes)
        with self._lock:
            fabric = self._fabrics.get(key)
            if fabric is None or not fabric.is_ours:
                fabric = self._fabrics[key] = EmbeddedFabric(key)
            fabric.users += 1
            return fabric

    def give_back(self, fabric: EmbeddedFabric) -> None:
        """It ends with its last user."""
        with self._lock:
            fabric.users -= 1
            if fabric.users > 0:
                return
            self._fabrics = {key: each for key, each in self._fabrics.items() if each is not fabric}
        fabric.stop()

    def abandon(self) -> None:
        """End all, as the interpreter ends."""
        fabrics, self._fabrics = list(self._fabrics.values()), {}
        for fabric in fabrics:
            with contextlib.suppress(SollolError, RuntimeError, OSError):
                fabric.abandon()
