"""Three hosts with addresses of their own, a model that fits none: a group over the network, and what breaks it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Network, hosts

from group_fleet import OPTIONS, QUESTION, RAM_MIB, Fleet, is_formable, ready, text_of
from sollol import Client
from sollol_broker.errors import NoNodeForModel
from waiting import wait_until


@pytest.fixture
def network() -> Iterator[Network]:
    with hosts(4) as network:
        yield network


@pytest.fixture
def fleet(redis_url: str, smollm2_path: Path, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(redis_url, smollm2_path, tmp_path) as fleet:
        yield fleet
    assert not fleet.parts(), "processes of a group are left"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, app="tests", cache=False) as client:
        yield client


def _join(fleet: Fleet, network: Network, count: int) -> None:
    fleet.coordinator()
    for at, (name, ram) in enumerate(zip("abcd", (*RAM_MIB, 100), strict=True)):
        if at < count:
            fleet.worker(name, ram, before=network.on(at), address=network.address(at))


async def test_a_cut_link_in_mid_answer_is_noticed_and_the_stream_goes_on(
    fleet: Fleet, client: Client, network: Network
) -> None:
    _join(fleet, network, 4)
    await is_formable(client)
    group = await ready(client, fleet)
    whole = text_of(client)
    places = {name: place["layers"] for place in group.places for name in [place["node"]]}
    assert sum(places.values()) == 31

    job = client.submit(chat=QUESTION, model="big", options=OPTIONS, stream=True)
    pieces = iter(job)
    text = str(next(pieces))
    member = next(name for name, _ in group.parts[1:])
    network.cut("abcd".index(member))
    text += "".join(pieces)

    assert text == job.result(timeout=60).text == whole
    again = await ready(client, fleet)
    assert member not in {name for name, _ in again.parts}


async def test_what_members_listen_on_is_closed_to_strangers(
    fleet: Fleet, client: Client, network: Network
) -> None:
    _join(fleet, network, 3)
    await is_formable(client)
    group = await ready(client, fleet)
    hosts_of = {name: "abcd".index(name) for name, _ in group.parts}

    for name, host in hosts_of.items():
        if name == group.head:
            continue
        told = await asyncio.to_thread(_knock, network.on(3), network.address(host))
        # From another host only the tunnel's port is there, and it says nothing to who has no certificate.
        assert len(told) == 1, told
        assert told[0].endswith(":silent")
    assert text_of(client)


def _knock(on: list[str], address: str) -> list[str]:
    command = [*on, sys.executable, "-c", _KNOCK, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()


# Connects to every port of a host that anything listens on, and says in plain RPC hello.
_KNOCK = """
import socket, struct, sys
for port in range(1024, 65536):
    try:
        with socket.create_connection((sys.argv[1], port), timeout=0.5) as s:
            s.settimeout(8)
            s.sendall(struct.pack("<BQ", 14, 24) + bytes(24))
            try:
                said = s.recv(64)
            except OSError:
                said = b""
            # A TLS alert is no answer.
            print(port, "silent" if said[:1] in (b"", bytes([21])) else "talks", sep=":")
    except OSError:
        pass
"""


async def test_when_all_are_gone_it_is_said_why(fleet: Fleet, client: Client, network: Network) -> None:
    _join(fleet, network, 3)
    await is_formable(client)
    for name in "bc":
        fleet.kill(name)

    def is_refused() -> str:
        try:
            client.submit(chat="x", model="big", options={"num_predict": 1}, deadline=5).result(timeout=30)
        except NoNodeForModel as refused:
            return str(refused)
        except Exception:  # the group still stands, or its jobs wait
            return ""
        return ""

    await wait_until(lambda: "MiB short" in is_refused(), timeout=90, what="the job is refused with reasons")
