"""kill -9 and SIGSTOP of the leader: another one leads soon, and no stale order gets through."""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio

from sollol_broker.keys import Keys
from waiting import wait_until

_CANDIDATE = Path(__file__).with_name("leader_process.py")
_KEYS = Keys()
_LEASE_SECONDS = 0.6
_KILLS = _FREEZES = 10


@dataclass(slots=True)
class Candidates:
    """Processes that stand for election, by the name under which they stand."""

    url: str
    fenced: bool
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def start(self) -> None:
        """One more."""
        name = f"c{next(self.numbers)}"
        self.processes[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, str(_CANDIDATE), self.url, name, str(_LEASE_SECONDS)),
            "fenced" if self.fenced else "unfenced",
        )

    async def kill(self, name: str) -> None:
        """kill -9, and a fresh one in its place."""
        process = self.processes.pop(name)
        process.kill()
        await process.wait()
        await self.start()

    async def stop(self) -> None:
        """End them all."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*(process.wait() for process in self.processes.values()))


@asynccontextmanager
async def _candidates(url: str, *, fenced: bool = True) -> AsyncIterator[Candidates]:
    group = Candidates(url, fenced)
    try:
        await asyncio.gather(*(group.start() for _ in range(3)))
        yield group
    finally:
        await group.stop()


@dataclass(slots=True)
class Watch:
    """Sees each change of the leader and of the group that leaders write."""

    raw: Any
    owners: dict[int, set[str]] = field(default_factory=dict)
    stale: int = 0
    newest: int = 0

    async def look(self) -> str:
        """Look once, at one moment; gives the leader whose lease holds, or ""."""
        async with self.raw.pipeline(transaction=True) as pipe:
            pipe.hmget(_KEYS.leader, "id", "term", "until")
            pipe.hget(_KEYS.group("g"), "by")
            pipe.time()
            (leader, term, until), by, (seconds, micros) = await pipe.execute()
        if leader is None:
            return ""
        self.owners.setdefault(int(term), set()).add(leader.decode())
        if by is not None:
            written = int(by.split()[1])
            self.stale += written < self.newest
            self.newest = max(self.newest, written)
        return leader.decode() if float(until) > seconds * 1000 + micros / 1000 else ""

    async def leader(self) -> str:
        """Wait for one that leads, and has written."""
        found = ""

        async def leads() -> bool:
            nonlocal found
            found = await self.look()
            by = await self.raw.hget(_KEYS.group("g"), "by")
            return bool(found) and by is not None and by.decode().split()[0] == found

        await wait_until(leads, timeout=20, what="a leader that gives orders")
        return found

    async def another(self, than: str) -> float:
        """Wait until another one leads; gives seconds."""
        began = time.monotonic()

        async def leads() -> bool:
            return await self.look() not in ("", than)

        await wait_until(leads, timeout=20, what=f"another leader than {than}")
        return time.monotonic() - began


async def test_a_leader_that_dies_or_freezes_is_replaced_and_gives_no_more_orders(redis_url: str) -> None:
    takeovers, watch = await _storm(redis_url, fenced=True, kills=_KILLS, freezes=_FREEZES)
    # The usual one, and on a busy machine: on an idle one it takes 1.2 leases. A single one may be held up by anything.
    assert statistics.median(takeovers) <= 4 * _LEASE_SECONDS, takeovers
    assert [owners for owners in watch.owners.values() if len(owners) > 1] == []
    assert len(watch.owners) > _KILLS + _FREEZES
    assert watch.stale == 0


async def test_without_the_check_of_the_term_a_stale_order_gets_through(redis_url: str) -> None:
    _, watch = await _storm(redis_url, fenced=False, kills=0, freezes=8)
    assert watch.stale > 0, "the check is off and nobody noticed: this storm has no teeth"


async def _storm(url: str, *, fenced: bool, kills: int, freezes: int) -> tuple[list[float], Watch]:
    takeovers = []
    async with redis.asyncio.Redis.from_url(url) as raw, _candidates(url, fenced=fenced) as group:
        watch = Watch(raw)
        for number in range(kills + freezes):
            leader = await watch.leader()
            if number < kills:
                await group.kill(leader)
                takeovers.append(await watch.another(than=leader))
                continue
            process = group.processes[leader]
            process.send_signal(signal.SIGSTOP)
            takeovers.append(await watch.another(than=leader))
            successor = await watch.leader()
            process.send_signal(signal.SIGCONT)
            woke = time.monotonic()
            while time.monotonic() - woke < 0.5 * _LEASE_SECONDS:  # the zombie has its say
                await watch.look()
            assert await watch.leader() == successor
    return takeovers, watch
