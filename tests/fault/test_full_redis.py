"""Redis has no room: new jobs are refused with a time to come back, and all that was accepted comes to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from accounts import Asked, hear_all, read_ledger

from fabric import worker
from sollol_broker.broker import Broker
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import BrokerUnavailable, QueueFull
from sollol_broker.keys import Keys
from sollol_broker.link import LinkConfig
from sollol_broker.url import parse
from sollol_client import AsyncClient
from waiting import wait_until

_MIB = 1024 * 1024
_ECHO = "echo://?slots=4&delay_ms=10&models=echo"


async def test_a_full_memory_refuses_new_jobs_and_ends_all_that_were_accepted() -> None:
    with EmbeddedBroker(appendonly=False) as server:
        raw: Any = redis.asyncio.Redis.from_url(server.url)
        async with raw, AsyncClient(server.url, app="full", cache=False) as client:
            room = (await raw.info("memory"))["used_memory"] + 12 * _MIB
            await raw.config_set("maxmemory", room)
            # Nobody works yet: they pile up until submit says no.
            jobs = [
                client.submit(chat=f"{number} " + "x" * 200_000, model="echo", wait_for_node=True)
                for number in range(100)
            ]
            waits: list[Any] = []

            async def all_have_gone_in() -> bool:
                nonlocal waits
                waits = [job for job in jobs if not job.done()]
                return int(await raw.hget(Keys().stats, "submitted") or 0) == len(waits)

            await wait_until(all_have_gone_in, timeout=30, what="each job to be accepted or refused")
            refused = [job for job in jobs if job.done()]
            assert waits
            assert refused
            for job in refused:
                with pytest.raises(QueueFull) as full:
                    await job
                assert full.value.retry_after > 0
            # Now as full as can be: only what ends jobs may still write.
            await raw.config_set("maxmemory", (await raw.info("memory"))["used_memory"] - 1)
            async with worker(server.url, _ECHO):
                asked = [Asked(job) for job in waits]
                told = await hear_all(asked, patience_seconds=60)
                ledger = await read_ledger(raw, Keys(), asked, told)
                assert not ledger.findings, str(ledger)
                await raw.config_set("maxmemory", 4 * room)  # answers are kept for an hour
                answer = await client.submit(chat="there is room again", model="echo")
                assert answer.text == "there is room again"


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, in memory; only root can make one."""
    if os.geteuid() != 0:
        pytest.skip("not root: no disk of its own can be made to be filled up; CI runs as root")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"this machine lets not even root mount a disk in memory: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(path: Path) -> None:
    # Without a buffer of Python's own, which would want to be written later.
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


async def test_a_full_disk_is_told_and_healed_and_loses_nothing(tmp_path: Path) -> None:
    with (
        _small_disk(tmp_path / "disk", "8m") as disk,
        EmbeddedBroker(directory=disk / "data") as server,
    ):
        url = parse(server.url)
        impatient = Broker(url, name="impatient", config=LinkConfig(patience_seconds=0.3))
        raw: Any = redis.asyncio.Redis.from_url(server.url)
        async with raw, AsyncClient(server.url, app="full", cache=False) as client:
            before = [
                client.submit(chat=f"before {number}", model="echo", wait_for_node=True)
                for number in range(50)
            ]

            async def are_in() -> bool:
                return bool(await raw.zcard(Keys().queue("echo")) == len(before))

            await wait_until(are_in, timeout=20, what="all jobs to wait")
            _fill(disk / "ballast")

            said: list[str] = []

            async def is_told() -> bool:
                with contextlib.suppress(redis.ResponseError):
                    await raw.set("{sollol}:probe", "x" * 8192, px=1_000)
                try:
                    await impatient.cancel("nosuchjob")  # it would write nothing, and is refused all the same
                except BrokerUnavailable as error:
                    said.append("refused for good" if error.refused else str(error))
                return bool(said)

            await wait_until(is_told, timeout=20, what="the full disk to be told")
            assert "MISCONF" in said[0], said
            during = [
                client.submit(chat=f"during {number}", model="echo", wait_for_node=True)
                for number in range(50)
            ]
            (disk / "ballast").unlink()
            # A worker comes; whatever waited for the disk is repeated by itself.
            async with worker(server.url, _ECHO):
                asked = [Asked(job) for job in before + during]
                told = await hear_all(asked, patience_seconds=60)
                ledger = await read_ledger(raw, Keys(), asked, told)
                assert not ledger.findings, str(ledger)
            await raw.delete("{sollol}:probe")
        await impatient.close()
        await asyncio.to_thread(server.restart)
        with redis.Redis.from_url(server.url) as again:
            ends = [again.hget(Keys().job(job.id), "state") for job in before + during]
            assert set(ends) == {b"done"}, "an answer that was given is not on the disk"
