"""A worker behind a network that is cut without a word: its job is done elsewhere, once, and it comes back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger

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


@dataclass(frozen=True, slots=True)
class Network:
    """A second machine, as far as the network goes, with a cable to this one."""

    name: str
    here: str

    def run(self, *command: str) -> tuple[str, ...]:
        """A command line that runs over there."""
        return ("ip", "netns", "exec", self.name, *command)

    def cut(self) -> None:
        """Lose all packets, both ways, without telling anybody."""
        rules = "add table inet cut; "
        for hook in ("input", "output"):
            rules += f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}; "
        _must(*self.run("nft", rules))

    def heal(self) -> None:
        """Lose none any more."""
        _must(*self.run("nft", "delete table inet cut"))


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@pytest.fixture
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("not root: no network can be made to be cut; CI runs as root")
    with _network() as made:
        yield made


@contextmanager
def _network() -> Iterator[Network]:
    tag = uuid.uuid4().hex[:6]
    name, cable, number = f"sollol-{tag}", f"so-{tag}", int(tag[:2], 16)
    here, there = f"10.77.{number}.1", f"10.77.{number}.2"
    try:
        made = subprocess.run(("ip", "netns", "add", name), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.fail("ip is not installed; install it with: apt-get install iproute2 nftables")
    if made.returncode:
        pytest.skip(f"this machine lets not even root make a network: {made.stderr.strip()}")
    try:
        _must("ip", "link", "add", cable, "type", "veth", "peer", "name", "cable", "netns", name)
        _must("ip", "addr", "add", f"{here}/30", "dev", cable)
        _must("ip", "link", "set", cable, "up")
        _must("ip", "-n", name, "addr", "add", f"{there}/30", "dev", "cable")
        _must("ip", "-n", name, "link", "set", "cable", "up")
        _must("ip", "-n", name, "link", "set", "lo", "up")
        yield Network(name, here)
    finally:
        subprocess.run(("ip", "netns", "del", name), check=False)
        subprocess.run(("ip", "link", "del", cable), capture_output=True, check=False)


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
