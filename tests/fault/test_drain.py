"""Every worker is restarted in turn, under load: nobody notices."""

from __future__ import annotations

import asyncio
import itertools
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from ledger import Told

from fabric import WorkerProcess, worker_process
from sollol_broker.keys import Keys
from sollol_client import AsyncClient
from waiting import wait_until

_ECHO = "echo://?slots=4&delay_ms=300&tokens=5&token_ms=40&models=echo"
_NODES = ("n0", "n1", "n2")


async def test_a_rolling_restart_under_load_costs_no_job_and_no_lease(redis_url: str, tmp_path: Path) -> None:
    keys = Keys()
    asked: list[Asked] = []
    told: list[Told] = []
    async with (
        AsyncClient(redis_url) as client,
        redis.asyncio.Redis.from_url(redis_url) as raw,
        AsyncExitStack() as stack,
    ):

        async def begin(node: str, generation: int) -> WorkerProcess:
            log = tmp_path / f"{node}.{generation}.log"
            # Half of the jobs are not done by then: they are handed back.
            options = ("--backend", _ECHO, "--drain", "0.2", "--lease", "5")
            process = await stack.enter_async_context(worker_process(redis_url, log, *options, node=node))
            await wait_until(lambda: "has joined" in process.said(), timeout=20, what=f"{node} to join")
            return process

        async def keep_asking() -> None:
            for number in itertools.count():
                wave = [_submit(client, 15 * number + each) for each in range(15)]
                asked.extend(wave)
                told.extend(await hear_all(wave, patience_seconds=120))
                if is_over.is_set():
                    return

        is_over = asyncio.Event()
        group = [await begin(node, 1) for node in _NODES]
        asking = asyncio.create_task(keep_asking())
        for node, old in zip(_NODES, group, strict=True):
            await wait_until(lambda node=node: _holds(raw, keys, node), timeout=20, what=f"{node} to be busy")
            old.process.send_signal(signal.SIGTERM)
            assert await old.exit_status() == 0, old.said()[-4000:]
            await begin(node, 2)
        is_over.set()
        await asking
        ledger = await read_ledger(raw, keys, asked, told)
        records = [await raw.hmget(keys.job(each.job.id), ["crashes", "releases"]) for each in asked]
    assert not ledger.findings, str(ledger)
    assert {crashes for crashes, _ in records} == {None}, "a lease ran out"
    assert any(releases for _, releases in records), "no job was handed back: nothing was drained under load"


async def _holds(raw: Any, keys: Keys, node: str) -> bool:
    ids = await raw.zrange(keys.leases, 0, -1)
    return any([await raw.hget(keys.job(each.decode()), "node") == node.encode() for each in ids])


def _submit(client: AsyncClient, number: int) -> Asked:
    words = f"the words of {number}"
    streams = number % 2 == 0
    job = client.submit(chat=words, model="echo", stream=streams, wait_for_node=True, cache=False)
    return Asked(job, streams=streams)
