"""A storm: many jobs, several worker processes, and faults aimed at those that hold leases; then the sum."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sollol_broker.keys import Keys
from sollol_broker.words import JobState

_WORKER = Path(__file__).with_name("worker_process.py")


@dataclass(slots=True)
class Ledger:
    """What became of each job, read from Redis alone."""

    submitted: int
    ends: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        """Jobs with no terminal entry."""
        return self.submitted - len(self.ends)

    @property
    def doubled(self) -> int:
        """Jobs with more than one terminal entry."""
        return sum(1 for count in self.ends.values() if count > 1)


@dataclass(slots=True)
class Workers:
    """Worker processes that are started anew when a fault ends them."""

    url: str
    lease_seconds: float
    backend: str
    fenced: bool = True
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    faults: int = 0

    async def start(self, node: str) -> None:
        """Start the worker of a node."""
        self.processes[node] = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_WORKER),
            self.url,
            node,
            str(self.lease_seconds),
            self.backend,
            "fenced" if self.fenced else "unfenced",
        )

    async def kill(self, node: str) -> None:
        """kill -9, and start a fresh one."""
        self.faults += 1
        process = self.processes[node]
        process.kill()
        await process.wait()
        await self.start(node)

    async def freeze(self, node: str, seconds: float) -> None:
        """SIGSTOP for so long, then SIGCONT: it wakes up as a zombie that believes in its lease."""
        self.faults += 1
        process = self.processes[node]
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End them all."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes.values()))


@asynccontextmanager
async def workers(url: str, count: int, **options: object) -> AsyncIterator[Workers]:
    """`count` workers, on nodes n0, n1, …"""
    group = Workers(url, **options)  # type: ignore[arg-type]  # a test's own words
    try:
        await asyncio.gather(*(group.start(f"n{number}") for number in range(count)))
        yield group
    finally:
        await group.stop()


async def lease_holders(client: Any, keys: Keys) -> list[str]:
    """Nodes that hold a lease now."""
    ids = await client.zrange(keys.leases, 0, -1)
    nodes = [await client.hget(keys.job(job_id.decode()), "node") for job_id in ids]
    return sorted({node.decode() for node in nodes if node is not None})


async def pick_holder(client: Any, keys: Keys, chance: random.Random) -> str:
    """A node that holds a lease; waits until there is one."""
    async with asyncio.timeout(20):
        while not (holders := await lease_holders(client, keys)):  # noqa: ASYNC110  # Redis has no event for it
            await asyncio.sleep(0.01)
    return chance.choice(holders)


async def read_ledger(client: Any, keys: Keys, ids: list[str]) -> Ledger:
    """Count the terminal entries of each job."""
    ledger = Ledger(len(ids))
    for job_id in ids:
        for _, entry in await client.xrange(keys.events(job_id)):
            if entry[b"t"] == b"end":
                ledger.ends[job_id] += 1
        state = await client.hget(keys.job(job_id), "state")
        ledger.states[state.decode() if state else "missing"] += 1
    assert set(ledger.states) <= {*map(str, JobState), "missing"}
    return ledger
