"""The primary is cut off together with some clients: it accepts nothing, and no job gets two answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_events, read_ledger
from network import Network, network_to_cut

from fabric import worker
from sollol import AsyncClient
from sollol_broker.child import ChildProcess, free_port
from sollol_broker.embedded import EmbeddedBroker, find_server
from sollol_broker.keys import Keys
from sollol_broker.primary import Primary
from sollol_broker.url import parse
from waiting import wait_until

_JOBS = 10
# A client on the wrong side: says which jobs it has sent, which were accepted and which answered.
_FAR_CLIENT = """
import asyncio, sys
from sollol import AsyncClient

async def main():
    async with AsyncClient(sys.argv[1], app="far") as client:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def one(number):
            job = client.submit(chat=f"far {number}", model="echo", wait_for_node=True, cache=False)
            print("sent", job.id, flush=True)
            await job.accepted()
            print("accepted", job.id, flush=True)
            print("answered", job.id, (await job).text, flush=True)

        await asyncio.gather(*(one(number) for number in range(int(sys.argv[2]))))

asyncio.run(main())
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with network_to_cut() as made:
        yield made


async def test_a_primary_that_is_cut_off_accepts_nothing_and_no_job_is_answered_twice(
    network: Network, tmp_path: Path
) -> None:
    with _group(network, tmp_path) as (url, old):
        primary = Primary(parse(url), slot_key=Keys().prefix)

        async def is_whole() -> bool:
            with suppress(redis.RedisError, OSError):
                async with redis.asyncio.Redis(host=old[0], port=old[1]) as plain:
                    replicas = int((await plain.info("replication"))["connected_slaves"])
                    return await primary.find() == old and replicas == 2
            return False

        await wait_until(is_whole, timeout=30, what="the group to be whole")
        async with (
            AsyncClient(url, app="near") as near,
            worker(url, "echo://?models=echo", lease_seconds=4.0),
            _far_client(network, url, tmp_path / "far.log") as far,
        ):
            await far.until("ready", 1)
            network.cut()
            far.go()
            await far.until("sent", _JOBS)

            async def has_moved() -> bool:
                with suppress(redis.RedisError, OSError):
                    return await primary.find() != old
                return False

            await wait_until(has_moved, timeout=30, what="a replica to be promoted")
            asked = [
                Asked(
                    near.submit(chat=f"near {n}", model="echo", wait_for_node=True, cache=False), f"near {n}"
                )
                for n in range(_JOBS)
            ]
            await asyncio.gather(*(each.job.accepted(30) for each in asked))
            assert far.said("accepted") == [], "the primary that was cut off has accepted jobs"
            network.heal()
            await far.until("answered", _JOBS)
            told = await hear_all(asked, patience_seconds=30)
            host, port = await primary.find()
            async with redis.asyncio.Redis(host=host, port=port) as plain:
                ledger = await read_ledger(plain, Keys(), asked, told)
                events = await read_events(plain, Keys(), [line[0] for line in far.said("sent")])
    assert not ledger.findings, str(ledger)
    answers = {line[0]: " ".join(line[1:]) for line in far.said("answered")}
    assert sorted(answers.values()) == sorted(f"far {n}" for n in range(_JOBS))
    for job_id, written in events.items():
        assert [entry.text for entry in written if entry.kind == "end"] == [answers[job_id]]


class _Far:
    """The client over there."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    def go(self) -> None:
        """Let it submit."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def said(self, word: str) -> list[list[str]]:
        """The rest of each line that begins with this word."""
        lines = (line.split() for line in self._log.read_text().splitlines())
        return [line[1:] for line in lines if line and line[0] == word]

    async def until(self, word: str, count: int) -> None:
        """Wait for so many such lines."""
        await wait_until(
            lambda: len(self.said(word)) >= count,
            timeout=60,
            what=f"{count} times {word!r} from the far client",
        )


@asynccontextmanager
async def _far_client(network: Network, url: str, log: Path) -> AsyncIterator[_Far]:
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *network.run(sys.executable, "-c", _FAR_CLIENT, url, str(_JOBS)),
            stdin=asyncio.subprocess.PIPE,
            stdout=sink,
            stderr=sink,
        )
    try:
        yield _Far(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextmanager
def _group(network: Network, folder: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """The primary over there, two replicas and three sentinels here; the URL, and where the primary is."""
    old, program = (network.there, free_port()), find_server().path
    here: dict[str, str | int] = {"bind": f"127.0.0.1 {network.here}", "protected-mode": "no"}
    replica: dict[str, str | int] = {
        "replicaof": f"{old[0]} {old[1]}",
        "replica-announce-ip": network.here,
        "repl-timeout": 10,
    }
    ports = [free_port() for _ in range(3)]
    processes: list[ChildProcess] = []
    replicas = [EmbeddedBroker(port=0, appendonly=False, config=here | replica) for _ in range(2)]
    try:
        directives = f'bind {old[0]} 127.0.0.1\nport {old[1]}\nprotected-mode no\nsave ""\nrepl-diskless-sync-delay 0\n'
        log = folder / "primary.log"
        processes.append(ChildProcess(network.run(str(program), "-"), stdin=directives.encode(), log=log))
        for each in replicas:
            each.start()
        for number, port in enumerate(ports):
            configuration = folder / f"sentinel{number}.conf"
            configuration.write_text(
                f"port {port}\nbind {network.here} 127.0.0.1\nprotected-mode no\ndir {folder}\n"
                f"sentinel monitor main {old[0]} {old[1]} 2\nsentinel down-after-milliseconds main 1000\n"
                "sentinel failover-timeout main 5000\n"
            )
            log = folder / f"sentinel{number}.log"
            processes.append(ChildProcess([program, configuration, "--sentinel"], log=log))
        hosts = ",".join(f"{network.here}:{port}" for port in ports)
        yield f"redis+sentinel://{hosts}/main", old
    finally:
        for process in processes:
            process.stop(patience_seconds=0)
        for each in replicas:
            each.stop()
