"""The primary dies or hangs in mid-work: what was accepted is answered, once, by way of its replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from accounts import Asked, hear_all, read_ledger
from servers import DOWN_AFTER_MS, Servers, cluster_of, raw, role, sentinel_group

from fabric import worker
from sollol import AsyncClient, JobLost
from sollol_broker.keys import Keys
from waiting import wait_until

_BACKEND = "echo://?slots=4&delay_ms=60&tokens=6&token_ms=20&models=echo"
# Of silence, beyond which a worker that is busy on this machine would be taken for dead.
_LEASE_SECONDS = 4.0


@dataclass(slots=True)
class Traffic:
    """A client that submits one job after the other, and notes when which was accepted.

    Attributes:
        accepted_at: moments at which the fabric said that it has a job.
    """

    client: AsyncClient
    asked: list[Asked] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    accepted_at: list[float] = field(default_factory=list)
    is_over: bool = False

    async def flow(self) -> None:
        """Submit until told to stop."""
        accepting = []
        while not self.is_over:
            number = len(self.asked)
            text = f"job {number} of six tokens each"
            job = self.client.submit(
                chat=text, model="echo", stream=number % 2 == 0, wait_for_node=True, cache=False
            )
            self.asked.append(Asked(job, "".join(f"{word} " for word in text.split()), number % 2 == 0))
            accepting.append(asyncio.create_task(self._accept(self.asked[-1])))
            await asyncio.sleep(0.03)
        await asyncio.gather(*accepting)

    async def _accept(self, asked: Asked) -> None:
        await asked.job.accepted(60)
        self.accepted.add(asked.job.id)
        self.accepted_at.append(time.monotonic())


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Servers]:
    async with sentinel_group(tmp_path) as servers:
        yield servers


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_failover_of_a_sentinel_group_loses_nothing_that_was_accepted(
    group: Servers, how: str
) -> None:
    away = await _fail_over(group, how)
    print(f"sentinel, {how}: writable again after {away:.1f} s")  # noqa: T201  # for the table
    # Usually a second after the replicas have noticed; this machine may be busy.
    assert away <= DOWN_AFTER_MS / 1000 + 15


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_failover_of_a_cluster_loses_nothing_that_was_accepted(how: str) -> None:
    async with cluster_of(primaries=3) as servers:
        away = await _fail_over(servers, how)
        print(f"cluster, {how}: writable again after {away:.1f} s")  # noqa: T201


@pytest.mark.parametrize("durability", ["local", "ha"])
async def test_what_only_the_primary_had_was_accepted_in_local_mode_alone(
    group: Servers, durability: str
) -> None:
    """The replicas are cut off while the job comes in, and one of them is promoted without it."""
    old = await group.primary()
    replicas = [each for each in group.members if each is not old]
    async with AsyncClient(group.url, app="failover", durability=durability) as client:
        for replica in replicas:
            await group.fail(replica, "stop")
        async with raw(old) as plain:
            await plain.execute_command(
                "CLIENT", "KILL", "TYPE", "replica"
            )  # what is on its way would be read later
        job = client.submit(chat="job", model="echo", wait_for_node=True, cache=False)
        if durability == "ha":
            with pytest.raises(TimeoutError):
                await job.accepted(2)
        else:
            await job.accepted(5)
            await client.close()  # who does not wait does not send it again
        await group.fail(old, "kill")
        for replica in replicas:
            await group.heal(replica, "stop")
        await group.until_another_is_primary(old)
        if durability == "ha":
            await job.accepted(30)
            async with worker(group.url, "echo://?models=echo", lease_seconds=_LEASE_SECONDS):
                async with asyncio.timeout(30):
                    assert (await job).text == "job"
        else:
            async with AsyncClient(group.url, app="failover") as other:
                with pytest.raises(JobLost):
                    await other.attach(job.id)


async def test_one_question_to_the_server_confirms_many_jobs(group: Servers) -> None:
    async with AsyncClient(group.url, app="failover") as client, raw(await group.primary()) as plain:
        jobs = [client.submit(chat=str(number), model="m", wait_for_node=True) for number in range(500)]
        await asyncio.gather(*(job.accepted(20) for job in jobs))
        calls = {name: told["calls"] for name, told in (await plain.info("commandstats")).items()}
    assert calls["cmdstat_fcall"] >= 500
    assert 1 <= calls["cmdstat_wait"] <= 50


async def _fail_over(servers: Servers, how: str) -> float:
    """Let the primary fail under load and come back; gives seconds without an accepted job."""
    async with (
        worker(servers.url, _BACKEND, node="n1", lease_seconds=_LEASE_SECONDS),
        worker(servers.url, _BACKEND, node="n2", lease_seconds=_LEASE_SECONDS),
        AsyncClient(servers.url, app="failover") as client,
    ):
        traffic = Traffic(client)
        flowing = asyncio.create_task(traffic.flow())
        await wait_until(lambda: len(traffic.accepted) >= 20, timeout=20, what="traffic")
        old = await servers.primary()
        failed_at = time.monotonic()
        await servers.fail(old, how)
        await servers.until_another_is_primary(old)
        await wait_until(
            lambda: any(at > failed_at + 0.5 for at in traffic.accepted_at), timeout=30, what="a job accepted"
        )
        away = min(at for at in traffic.accepted_at if at > failed_at + 0.5) - failed_at
        await servers.heal(old, how)  # it believes that it is the primary, until it is told

        async def is_replica() -> bool:
            return await role(old) == "slave"

        await wait_until(is_replica, timeout=30, what="the old primary to follow the new one")
        traffic.is_over = True
        await flowing
        told = await hear_all(traffic.asked, patience_seconds=60)
        # On a busy machine they may have moved once more.
        async with raw(await servers.primary()) as plain:
            ledger = await read_ledger(plain, Keys(), traffic.asked, told, may_lack_last=True)
    assert len(traffic.accepted) == len(traffic.asked) > 20
    assert not ledger.findings, str(ledger)
    assert ledger.ends == {"done": len(traffic.asked)}
    return away
