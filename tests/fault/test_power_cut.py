"""The power of Redis' machine fails: what its disk had is what there is, and whoever waits is answered all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest
import redis.asyncio
from accounts import Asked, hear_all, read_ledger
from power import powered

from fabric import worker
from sollol import AsyncClient
from sollol_broker.keys import Keys
from waiting import wait_until

_BACKEND = "echo://?slots=4&delay_ms=60&tokens=6&token_ms=20&models=echo"


@pytest.mark.parametrize(("appendfsync", "keeps_all"), [("everysec", False), ("always", True)])
async def test_a_power_cut_leaves_no_waiting_client_unanswered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    appendfsync: Literal["always", "everysec"],
    keeps_all: bool,
) -> None:
    """Of jobs that nobody waits for, "everysec" may lose some, and does: their last second is cut off.

    So are the ends of jobs that were answered in that second: then the answer is known to the client alone.
    """
    with powered(tmp_path, monkeypatch, appendfsync) as power:
        url = power.broker.url
        async with (
            worker(url, _BACKEND, node="n1", lease_seconds=4),
            worker(url, _BACKEND, node="n2", lease_seconds=4),
            AsyncClient(url, app="waits") as waits,
        ):
            asked = [_submit(waits, number) for number in range(100)]
            await wait_until(lambda: asked[10].job.done(), timeout=20, what="the first answers")
            before = power.safe_bytes
            await wait_until(
                lambda: power.safe_bytes > before, timeout=20, what="the disk to confirm something"
            )
            safe = power.safe_bytes
            async with AsyncClient(url, app="leaves") as leaves:
                left = [leaves.submit(chat=str(n), model="nobody", wait_for_node=True) for n in range(50)]
                asked += [_submit(waits, number) for number in range(100, 120)]
                await asyncio.gather(*(each.accepted(30) for each in left))
                # A stalled machine may have confirmed these, too, by now; what is tested is that it has not.
                lost_bytes = await asyncio.to_thread(power.cut, None if keeps_all else safe)
            await asyncio.to_thread(power.broker.start)
            told = await hear_all(asked, patience_seconds=60)
            async with redis.asyncio.Redis(port=power.broker.port or 0) as raw:
                ledger = await read_ledger(
                    raw, Keys(), asked, told, may_lack_last=True, may_be_forgotten=not keeps_all
                )
                lost = [job.id for job in left if not await raw.exists(Keys().job(job.id))]
    assert not ledger.findings, str(ledger)
    assert [each.text for each in told] == [each.own_text for each in asked]
    if keeps_all:
        assert ledger.ends == {"done": len(asked)}
        assert lost == []
    else:
        assert lost_bytes > 0
        assert lost, "the cut took nothing: it proved nothing"


def _submit(client: AsyncClient, number: int) -> Asked:
    text = f"job {number} of six tokens each"
    job = client.submit(chat=text, model="echo", stream=number % 2 == 0, wait_for_node=True, cache=False)
    return Asked(job, "".join(f"{word} " for word in text.split()), number % 2 == 0)
