"""Worker processes that a test kills and freezes, aimed at those that hold leases."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import worker_process
from worker_process import WorkerPlan

from sollol_broker.keys import Keys
from waiting import wait_until

# A fork server has imported all that a worker needs: a fresh worker takes milliseconds, not a second of processor time.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["sollol_worker_agent.agent", "sollol_worker_agent.backends"])


@dataclass(slots=True)
class WorkerGroup:
    """One worker per node; a fault that ends one is followed by a fresh one.

    Attributes:
        frozen: nodes whose worker stands still now.
        deaths: workers that ended without our doing.
    """

    plan: WorkerPlan
    log: Path | None = None
    frozen: set[str] = field(default_factory=set)
    deaths: int = 0
    _processes: dict[str, BaseProcess] = field(default_factory=dict)

    def start(self, node: str) -> None:
        """Start the worker of a node."""
        process = _FORKS.Process(target=worker_process.run, args=(self.plan, node, self.log), daemon=True)
        process.start()
        self._processes[node] = process

    def kill(self, node: str) -> None:
        """kill -9, and start a fresh one."""
        self._processes[node].kill()
        self._processes[node].join()
        self.start(node)

    async def freeze(self, node: str, seconds: float) -> None:
        """SIGSTOP for so long, then SIGCONT: it wakes up as a zombie that believes in its lease."""
        process = self._processes[node]
        self.frozen.add(node)
        try:
            self._signal(process, signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            self._signal(process, signal.SIGCONT)
            self.frozen.discard(node)

    def revive(self) -> None:
        """Start a fresh worker where one has died."""
        for node, process in list(self._processes.items()):
            if process.exitcode is not None:
                self.deaths += 1
                self.start(node)

    def stop(self) -> None:
        """End them all."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
            process.close()

    @staticmethod
    def _signal(process: BaseProcess, number: signal.Signals) -> None:
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, number)


@asynccontextmanager
async def workers(plan: WorkerPlan, count: int, log: Path | None = None) -> AsyncIterator[WorkerGroup]:
    """`count` workers, on nodes n0, n1, …"""
    group = WorkerGroup(plan, log)
    try:
        for number in range(count):
            group.start(f"n{number}")
        yield group
    finally:
        group.stop()


async def jobs_by_holder(client: Any, keys: Keys) -> dict[str, list[str]]:
    """The jobs that each node holds a lease of."""
    ids = [each.decode() for each in await client.zrange(keys.leases, 0, -1)]
    pipeline = client.pipeline(transaction=False)
    for job_id in ids:
        pipeline.hget(keys.job(job_id), "node")
    found: dict[str, list[str]] = {}
    for job_id, node in zip(ids, await pipeline.execute(), strict=True):
        if node is not None:
            found.setdefault(node.decode(), []).append(job_id)
    return found


async def pick_holder(
    client: Any, keys: Keys, chance: random.Random, *, but: Sequence[str] | set[str] = ()
) -> tuple[str, list[str]]:
    """A node that holds leases, and of which jobs; waits until there is one."""
    found: dict[str, list[str]] = {}

    async def is_found() -> bool:
        nonlocal found
        found = {node: ids for node, ids in (await jobs_by_holder(client, keys)).items() if node not in but}
        return bool(found)

    await wait_until(is_found, timeout=90, what="a worker to hold a lease")
    node = chance.choice(sorted(found))
    return node, found[node]
