"""Machines with addresses of their own on one switch: network namespaces. Needs root; nothing leaves this machine.

with hosts(3) as network:                     # 10.77.X.11, .12, .13
    subprocess.Popen([*network.on(0), "sollol-worker", …])
    network.cut(1)                            # its cable is pulled: packets vanish, nobody is told
    network.mend(1)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

_NEEDS = "needs root, `ip` (iproute2) and network namespaces"


@dataclass(frozen=True, slots=True)
class Network:
    """Some hosts on one switch, all of it in namespaces of our own.

    Attributes:
        name: what all their names begin with. count: how many hosts.
    """

    name: str
    subnet: int
    count: int

    def address(self, host: int) -> str:
        """Of a host, counted from 0."""
        return f"10.77.{self.subnet}.{11 + host}"

    def on(self, host: int) -> list[str]:
        """What a command begins with to run on a host."""
        return ["ip", "netns", "exec", f"{self.name}-h{host}"]

    def cut(self, host: int) -> None:
        """Pull a host's cable at the switch: nothing gets through, and no connection is closed."""
        _ip("-n", f"{self.name}-sw", "link", "set", f"p{host}", "nomaster")

    def mend(self, host: int) -> None:
        """Put it back."""
        _ip("-n", f"{self.name}-sw", "link", "set", f"p{host}", "master", "br0")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Network]:
    """Build them, and take everything down afterwards; skips where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip(_NEEDS)
    network = Network(f"sol{secrets.token_hex(3)}", secrets.randbelow(200) + 10, count)
    spaces = [f"{network.name}-sw", *(f"{network.name}-h{at}" for at in range(count))]
    try:
        try:
            _build(network, spaces)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{_NEEDS}: {error.stderr.decode().strip()}")
        yield network
    finally:
        for space in spaces:
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _build(network: Network, spaces: list[str]) -> None:
    switch = spaces[0]
    for space in spaces:
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
    _ip("-n", switch, "link", "add", "br0", "type", "bridge")
    _ip("-n", switch, "link", "set", "br0", "up")
    for at, space in enumerate(spaces[1:]):
        _ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", f"p{at}", "netns", switch)
        _ip("-n", space, "addr", "add", f"{network.address(at)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", switch, "link", "set", f"p{at}", "up")
        _ip("-n", switch, "link", "set", f"p{at}", "master", "br0")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, check=True)
