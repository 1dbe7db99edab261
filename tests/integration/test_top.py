"""`sollol top` against a real fabric: once, as JSON, and live in a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from fabric import town, until, worker
from sollol import AsyncClient, Client
from sollol.cli.app import app
from waiting import wait_until

_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def _run(url: str, *args: str) -> Any:
    return CliRunner().invoke(app, ["top", *args, "--redis", url])


def test_what_it_shows_once_is_what_the_client_counts(redis_url: str) -> None:
    with town(redis_url, node="gpu-7", parallel=1) as there, Client(redis_url, app="web") as client:
        client.submit(chat="one", model="tiny").result(20)
        there.hold()
        runs = client.submit(chat="runs", model="tiny")
        until(lambda: there.asked == 2, "the job at the backend")
        waiting = [client.submit(chat=f"{number}", model="tiny") for number in range(3)]
        until(lambda: waiting[-1].position() == 2, "the others in line")
        until(lambda: client.nodes()[0].workers[0].busy == 1, "an advert that says so")
        plain = json.loads(_run(redis_url, "--json").stdout)
        said = _run(redis_url, "--once").stdout
        (queue,) = [each for each in client.queues() if each.model == "tiny"]
        there.go()
        for job in (runs, *waiting):
            job.result(20)
    totals = plain["totals"]
    assert (totals["running"], totals["waiting"], totals["done"]) == (1, queue.waiting, 1)
    assert (plain["nodes"][0]["name"], plain["nodes"][0]["busy"]) == ("gpu-7", 1)
    assert plain["queues"][0]["why"] == "the only slot of gpu-7 is busy"
    assert {"requests", "tokens", "ttft_p95", "latency_p50", "tokens_hour"} <= set(plain["rates"])
    assert "1 run, 3 wait" in said
    assert all(line == line.rstrip() for line in said.splitlines())
    assert "gpu-7" in said
    assert "answers 1 job with tiny" in said


def test_a_redis_that_is_away_is_one_line() -> None:
    said = _run("redis://127.0.0.1:1/0", "--once")
    assert said.exit_code == 3
    assert said.stderr.startswith("error: cannot reach Redis")


class _Terminal:
    """A command in a terminal of 80 columns."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self.process = process
        self.raw = ""

    def text(self) -> str:
        """What it has drawn so far, without the codes."""
        while True:
            try:
                piece = os.read(self._master, 65536)
            except (BlockingIOError, OSError):
                break
            if not piece:
                break
            self.raw += piece.decode(errors="replace")
        return _CODES.sub("", self.raw)

    def press(self, key: str) -> None:
        """Type."""
        os.write(self._master, key.encode())


@contextmanager
def _pair() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("by", ["q", "SIGTERM"])
async def test_it_is_redrawn_in_a_terminal_until_it_is_ended(redis_url: str, by: str) -> None:
    with _pair() as (master, slave):
        before = termios.tcgetattr(slave)
        async with worker(redis_url, "echo://", node="n1"), AsyncClient(redis_url, app="web") as client:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sollol.cli", "top", "--interval", "0.2", "--redis", redis_url),
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**os.environ, "TERM": "xterm-256color"},
            )
            terminal = _Terminal(master, process)
            try:
                await wait_until(lambda: "n1" in terminal.text(), timeout=30, what="the first look")
                assert "\x1b[?1049h" in terminal.raw, "it draws on the other screen"
                await client.submit(chat="hi", model="echo")
                await wait_until(lambda: "1 done" in terminal.text(), timeout=30, what="the job that is done")
                if by == "q":
                    terminal.press("q")
                else:
                    process.terminate()
                async with asyncio.timeout(30):
                    assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        terminal.text()
        assert terminal.raw.rstrip().endswith(("\x1b[?1049l\x1b[?25h", "\x1b[?25h\x1b[?1049l"))
        assert termios.tcgetattr(slave) == before
