"""A stranger's way: from nothing to an answer, a second node, its death, the page, a batch. Each shows the next."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from sollol_broker.child import free_port
from waiting import wait_until

_PROGRAMS = Path(sys.executable).parent


@dataclass
class Stranger:
    """Somebody with an empty home, who knows the README."""

    home: Path
    url: str
    page: str
    gateway: str
    up: subprocess.Popen[bytes]

    async def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command as the README writes it."""

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [_PROGRAMS / command, *arguments],
                env=self.environ(),
                cwd=self.home,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )

        return await asyncio.to_thread(run)

    async def says(self, *arguments: str) -> str:
        """What `sollol …` prints; it must not fail."""
        done = await self.run("sollol", *arguments)
        assert done.returncode == 0, f"sollol {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    async def is_well(self) -> None:
        """`sollol doctor` finds nothing that is wrong."""
        done = await self.run("sollol", "doctor")
        assert done.returncode == 0, done.stdout + done.stderr

    def environ(self) -> dict[str, str]:
        """Nothing of this machine's, save where programs are."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "SOLLOL_REDIS_URL": self.url,
            "LANG": "C.UTF-8",
        }

    def start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that stays; its log lies in the home."""
        with (self.home / f"{command}.log").open("wb") as log:
            return subprocess.Popen(
                [_PROGRAMS / command, *arguments],
                env={**self.environ(), "SOLLOL_REDIS_URL": "" if arguments[0] == "up" else self.url},
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, command: str) -> str:
        """What that has said so far."""
        return (self.home / f"{command}.log").read_text(errors="replace")


@pytest.fixture
async def stranger(tmp_path: Path) -> AsyncIterator[Stranger]:
    ports = [str(free_port()) for _ in range(3)]
    url, gateway, page = (
        f"redis://127.0.0.1:{ports[0]}/0",
        *(f"http://127.0.0.1:{port}" for port in ports[1:]),
    )
    stranger = Stranger(tmp_path, url, page, gateway, None)  # type: ignore[arg-type]  # it needs the others first
    stranger.up = stranger.start(
        "sollol", "up", "--port", ports[0], "--gateway-port", ports[1], "--dashboard-port", ports[2]
    )
    try:
        yield stranger
    finally:
        stranger.up.send_signal(signal.SIGINT)
        stranger.up.wait(60)
    left = [each for each in psutil.Process().children(recursive=True) if str(tmp_path) in _words(each)]
    assert left == []
    assert "stopped: nothing is left running" in stranger.log("sollol")


async def test_from_nothing_to_a_batch(stranger: Stranger, smollm2_path: Path) -> None:
    def is_up() -> bool:
        assert stranger.up.poll() is None, stranger.log("sollol")
        return "Ctrl-C stops everything." in stranger.log("sollol")

    await wait_until(is_up, timeout=180, what="sollol up to be up")
    shown = stranger.log("sollol")
    for step in ("sollol chat", "sollol nodes", stranger.gateway, stranger.page):
        assert step in shown

    # The first answer.
    said = await stranger.says("chat", "Name a fruit.", "--option", "num_predict=8")
    assert "attempt 1" in said
    await stranger.is_well()

    # A second node, and its death in mid-answer.
    second = stranger.start(
        "sollol-worker", "--node", "second", "--model", f"smollm2={smollm2_path}", "--lease", "3"
    )
    try:

        async def has_joined() -> bool:
            assert second.poll() is None, stranger.log("sollol-worker")
            return "second" in await stranger.says("nodes")

        await wait_until(has_joined, timeout=120, what="the second node to join")
        await stranger.is_well()
        for child in psutil.Process(second.pid).children(recursive=True):
            child.kill()
        second.kill()
    finally:
        second.kill()
        second.wait(20)
    said = await stranger.says("chat", "Name a river.", "--option", "num_predict=8")
    assert "attempt" in said

    # The page, and the HTTP door.
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        assert "SOLLOL" in (await http.get(stranger.page)).text
        assert (await http.get(f"{stranger.gateway}/api/dashboard", follow_redirects=True)).status_code == 200
        tags = (await http.get(f"{stranger.gateway}/api/tags")).json()
    assert {model["name"] for model in tags["models"]} >= {"smollm2:latest", "all-minilm:latest"}

    # A batch.
    (stranger.home / "texts.txt").write_text("a cat\na dog\na tax return\n")
    await stranger.says("batch", "embed", "texts.txt", "-m", "all-minilm", "-o", "vectors.npy")
    assert (stranger.home / "vectors.npy").stat().st_size > 3 * 384 * 4
    assert "completed" in await stranger.says("batch", "list", "--json")


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
