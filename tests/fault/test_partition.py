"""A worker behind a network that is cut without a word: its job is done elsewhere, once, and it comes back."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from network import Network, network_to_cut

from fabric import worker
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from waiting import wait_until

_LEASE_SECONDS = 1.0
_SLOTS = 4
# Longer than a lease and the look for those that ran out: the jobs are somebody else's before it is done.
_SLOW_ECHO = f"echo://?slots={_SLOTS}&delay_ms=4000&models=echo"
_ECHO = f"echo://?slots={_SLOTS}&models=echo"


@pytest.fixture
def network() -> Iterator[Network]:
    with network_to_cut() as made:
        yield made


@asynccontextmanager
async def _worker_there(network: Network, url: str, log: Path) -> AsyncIterator[None]:
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *network.run(sys.executable, "-m", "sollol_worker_agent.cli"),
            *("--redis", url, "--node", "far", "--lease", str(_LEASE_SECONDS), "--backend", _SLOW_ECHO),
            stdout=sink,
            stderr=sink,
        )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def test_a_worker_that_is_cut_off_loses_its_jobs_to_another_and_comes_back(
    network: Network, tmp_path: Path
) -> None:
    config, password = {"bind": f"127.0.0.1 {network.here}"}, uuid.uuid4().hex
    with EmbeddedBroker(appendonly=False, port=0, password=password, config=config) as server:
        far_url = f"redis://:{password}@{network.here}:{server.port}/0"
        raw: Any = redis.asyncio.Redis.from_url(server.url)
        async with (
            raw,
            AsyncClient(server.url, app="cut", cache=False) as client,
            _worker_there(network, far_url, tmp_path / "far.log"),
        ):
            jobs = [client.submit(chat=f"job {n}", model="echo", wait_for_node=True) for n in range(_SLOTS)]

            async def holds_all() -> bool:
                return bool(await raw.zcard(Keys().leases) == _SLOTS)

            await wait_until(holds_all, timeout=30, what="the far worker to hold all jobs")
            network.cut()
            async with worker(server.url, _ECHO, node="near", lease_seconds=_LEASE_SECONDS):
                asked = [Asked(job, f"job {n}") for n, job in enumerate(jobs)]
                told = await hear_all(asked, patience_seconds=30)
                assert {(await job).routing.node for job in jobs} == {"near"}
                network.heal()
                # Only the far one may have it: answered, so it is back, over a connection that nobody closed.
                back = client.submit(
                    chat="back", model="echo", requires={"node": "far"}, wait_for_node=True, timeout=60
                )
                assert (await asyncio.wait_for(back, 60)).routing.node == "far"
            ledger = await read_ledger(raw, Keys(), asked, told)
            assert not ledger.findings, str(ledger)
