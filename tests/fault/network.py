"""A network namespace with a cable that can be cut."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class Network:
    """A second machine, as far as the network goes, with a cable to this one."""

    name: str
    here: str
    there: str

    def run(self, *command: str) -> tuple[str, ...]:
        """A command line that runs over there."""
        return ("ip", "netns", "exec", self.name, *command)

    def cut(self) -> None:
        """Lose all packets, both ways, without telling anybody; over there they still hear each other."""
        rules = "add table inet cut; "
        for hook, interface in (("input", "iif"), ("output", "oif")):
            rules += f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}; "
            rules += f"add rule inet cut {hook} {interface} lo accept; "
        _must(*self.run("nft", rules))

    def heal(self) -> None:
        """Lose none any more."""
        _must(*self.run("nft", "delete table inet cut"))


def _must(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextmanager
def network_to_cut() -> Iterator[Network]:
    """One of our own; skips the test where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("not root: no network can be made to be cut; CI runs as root")
    tag = uuid.uuid4().hex[:6]
    name, cable = f"sollol-{tag}", f"so-{tag}"
    # Of 16,384 networks of two: other tests may have theirs at the same time.
    third, fourth = int(tag[:2], 16), int(tag[2:4], 16) & ~3
    here, there = f"10.77.{third}.{fourth + 1}", f"10.77.{third}.{fourth + 2}"
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
        yield Network(name, here, there)
    finally:
        subprocess.run(("ip", "netns", "del", name), check=False)
        subprocess.run(("ip", "link", "del", cable), capture_output=True, check=False)
