"""Several Redis servers that stand in for each other: a Sentinel group and a Cluster, to be killed and frozen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.crc import key_slot

from sollol_broker.child import ChildProcess, free_port
from sollol_broker.embedded import EmbeddedBroker, find_server
from sollol_broker.keys import Keys
from sollol_broker.primary import Primary
from sollol_broker.url import parse
from waiting import wait_until

# Longer than a busy machine may keep one of them waiting.
DOWN_AFTER_MS = 2000
_SERVICE = "main"


@dataclass(slots=True)
class Servers:
    """Servers, and the URL by which the fabric finds the primary among them."""

    url: str = ""
    members: list[EmbeddedBroker] = field(default_factory=list)
    stopped: list[EmbeddedBroker] = field(default_factory=list)

    async def primary(self) -> EmbeddedBroker:
        """The one that takes the fabric's writes, as a client would be told."""
        _, port = await Primary(parse(self.url), slot_key=Keys().prefix).find()
        return next(each for each in self.members if each.port == port)

    async def fail(self, server: EmbeddedBroker, how: str) -> None:
        """kill -9 ("kill") or SIGSTOP ("stop")."""
        if how == "kill":
            await asyncio.to_thread(server.kill)
        else:
            self._signal(server, signal.SIGSTOP)
            self.stopped.append(server)

    async def heal(self, server: EmbeddedBroker, how: str) -> None:
        """Let it come back, with what it believes in."""
        if how == "kill":
            await asyncio.to_thread(server.start)
        else:
            self._signal(server, signal.SIGCONT)
            self.stopped.remove(server)

    async def until_another_is_primary(self, than: EmbeddedBroker) -> EmbeddedBroker:
        """Wait for a failover."""
        found = than

        async def has_moved() -> bool:
            nonlocal found
            with contextlib.suppress(redis.RedisError, OSError):
                found = await self.primary()
            return found is not than and await role(found) == "master"

        await wait_until(has_moved, timeout=30, what="another server to become the primary")
        return found

    def close(self) -> None:
        """End them all."""
        for server in self.stopped:
            self._signal(server, signal.SIGCONT)
        for server in self.members:
            server.kill()
            server.stop()

    @staticmethod
    def _signal(server: EmbeddedBroker, number: signal.Signals) -> None:
        if (pid := server.pid) is not None:
            os.kill(pid, number)


@asynccontextmanager
async def raw(server: EmbeddedBroker) -> AsyncIterator[Any]:
    """A plain client of one server."""
    async with redis.asyncio.Redis(port=server.port or 0, socket_timeout=5) as client:
        yield client


async def role(server: EmbeddedBroker) -> str:
    """ "master" or "slave", as it says itself."""
    async with raw(server) as client:
        return str((await client.execute_command("ROLE"))[0].decode())


@asynccontextmanager
async def sentinel_group(folder: Path, *, replicas: int = 2, **config: str | int) -> AsyncIterator[Servers]:
    """A primary, its replicas, and three sentinels that agree after two seconds that it is down."""
    group, sentinels = Servers(), []
    try:
        first = await _start(group, config)
        for _ in range(replicas):
            await _start(group, {"replicaof": f"127.0.0.1 {first.port}", **config})
        ports = [free_port() for _ in range(3)]
        for number, port in enumerate(ports):
            configuration = folder / f"sentinel{number}.conf"
            configuration.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor {_SERVICE} 127.0.0.1 {first.port} 2\n"
                f"sentinel down-after-milliseconds {_SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {_SERVICE} 5000\n"
            )
            log = folder / f"sentinel{number}.log"
            sentinels.append(ChildProcess([find_server().path, configuration, "--sentinel"], log=log))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        group.url = f"redis+sentinel://{hosts}/{_SERVICE}"

        async def is_whole() -> bool:
            return all([await _sentinel_is_ready(port, replicas) for port in ports])

        await wait_until(is_whole, timeout=30, what="the sentinels to know each other and the replicas")
        yield group
    finally:
        for process in sentinels:
            process.stop(patience_seconds=0)
        group.close()


@asynccontextmanager
async def cluster_of(primaries: int = 3, *, node_timeout_ms: int = DOWN_AFTER_MS) -> AsyncIterator[Servers]:
    """A Cluster: so many primaries with a replica each, and a second one for the fabric's.

    After a failover somebody must still be there to confirm what the new primary writes.
    """
    group = Servers()
    try:
        for _ in range(2 * primaries + 1):
            await _start(
                group,
                {
                    "cluster-enabled": "yes",
                    "cluster-port": free_port(),
                    "cluster-announce-ip": "127.0.0.1",
                    "cluster-node-timeout": node_timeout_ms,
                    "cluster-replica-validity-factor": 0,
                },
            )
        await _join(group.members, primaries)
        group.url = "redis+cluster://" + ",".join(f"127.0.0.1:{each.port}" for each in group.members[:2])
        yield group
    finally:
        group.close()


async def _start(group: Servers, config: dict[str, str | int]) -> EmbeddedBroker:
    # A diskless sync that waits for no other replica: a group is whole in a moment.
    quick: dict[str, str | int] = {"repl-diskless-sync-delay": 0, "repl-timeout": 10}
    server = EmbeddedBroker(port=0, config=quick | config)
    group.members.append(server)
    await asyncio.to_thread(server.start)
    return server


async def _sentinel_is_ready(port: int, replicas: int) -> bool:
    async with redis.asyncio.Redis(port=port, protocol=2, decode_responses=True) as client:
        with contextlib.suppress(redis.RedisError, OSError):
            flat = await client.execute_command("SENTINEL MASTER", _SERVICE)  # type: ignore[no-untyped-call]
            told = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
            return int(told["num-slaves"]) == replicas and int(told["num-other-sentinels"]) == 2
    return False


async def _join(members: list[EmbeddedBroker], primaries: int) -> None:
    buses = [int((await _ask(each, "CONFIG", "GET", "cluster-port"))[1]) for each in members]
    for other, bus in zip(members[1:], buses[1:], strict=True):
        await _ask(members[0], "CLUSTER", "MEET", "127.0.0.1", other.port, bus)
    size = -(-16384 // primaries)
    for number in range(primaries):
        last = min(16383, (number + 1) * size - 1)
        await _ask(members[number], "CLUSTER", "ADDSLOTSRANGE", number * size, last)
    ids = [(await _ask(each, "CLUSTER", "MYID")).decode() for each in members]

    async def all_know_all() -> bool:
        known = [(await _ask(each, "CLUSTER", "NODES")).decode() for each in members]
        return all(node_id in text for text in known for node_id in ids)

    await wait_until(all_know_all, timeout=30, what="the nodes of the cluster to meet")
    owner = key_slot(Keys().prefix.encode()) // size
    for replica, primary in zip(members[primaries:], [*range(primaries), owner], strict=True):
        await _ask(replica, "CLUSTER", "REPLICATE", ids[primary])

    async def is_whole() -> bool:
        infos = [(await _ask(each, "CLUSTER", "INFO")).decode() for each in members]
        links = [await _ask(each, "INFO", "replication") for each in members[primaries:]]
        return all("cluster_state:ok" in text for text in infos) and all(
            b"master_link_status:up" in text for text in links
        )

    await wait_until(is_whole, timeout=30, what="the cluster to be whole")


async def _ask(server: EmbeddedBroker, *command: object) -> Any:
    connection = redis.asyncio.Connection(port=server.port or 0, protocol=2)
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        await connection.send_command(*command)
        return await connection.read_response()
    finally:
        await connection.disconnect()
