"""Fills the ledger: reads what stands in Redis, and asks clients what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger import Account, Ledger, Told, Written, balance

from sollol_broker.codec import unpack
from sollol_broker.envelope import MAX_ANSWER_BYTES
from sollol_broker.errors import SollolError
from sollol_broker.keys import Keys
from sollol_broker.outcome import read_outcome
from sollol_broker.words import JobState
from sollol_client import AsyncJob
from sollol_client.answer import make_answer

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """A job that a client waits for."""

    job: AsyncJob
    own_text: str | None = None
    streams: bool = False
    may_end: frozenset[str] = frozenset({"done"})


async def hear(asked: Asked) -> Told:
    """Wait for what the client is told."""
    streaming = asyncio.ensure_future(_hear_stream(asked.job)) if asked.streams else None
    text, error = None, ""
    try:
        text = (await asked.job).text
    except SollolError as failed:
        error = type(failed).__name__
    streamed, broken = (None, False) if streaming is None else await streaming
    return Told(text, error, streamed, broken)


async def hear_all(asked: Sequence[Asked], *, patience_seconds: float) -> list[Told]:
    """What each client is told; those that wait longer were told nothing."""
    hearing = [asyncio.ensure_future(hear(each)) for each in asked]
    if hearing:
        await asyncio.wait(hearing, timeout=patience_seconds)
    told = [each.result() if each.done() else Told() for each in hearing]
    for each in hearing:
        each.cancel()
    await asyncio.gather(*hearing, return_exceptions=True)
    return told


async def read_ledger(
    client: Any,
    keys: Keys,
    asked: Sequence[Asked],
    told: Sequence[Told],
    *,
    may_lack_last: bool = False,
    may_be_forgotten: bool = False,
) -> Ledger:
    """The sum over all jobs.

    Args:
        client: a plain Redis client.
        told: what the client of each was told.
        may_lack_last, may_be_forgotten: see Account.
    """
    written = await read_events(client, keys, [each.job.id for each in asked])
    return balance(
        Account(
            each.job.id,
            written[each.job.id],
            (heard,),
            each.own_text,
            each.streams,
            each.may_end,
            may_lack_last,
            may_be_forgotten,
        )
        for each, heard in zip(asked, told, strict=True)
    )


async def read_events(client: Any, keys: Keys, ids: Sequence[str]) -> dict[str, list[Written]]:
    """What stands in the events of each job."""
    found: dict[str, list[Written]] = {}
    for at in range(0, len(ids), _AT_ONCE):
        some = ids[at : at + _AT_ONCE]
        pipeline = client.pipeline(transaction=False)
        for job_id in some:
            pipeline.xrange(keys.events(job_id))
        for job_id, entries in zip(some, await pipeline.execute(), strict=True):
            found[job_id] = [_written(job_id, fields) for _, fields in entries]
    return found


def _written(job_id: str, entry: Mapping[bytes, bytes]) -> Written:
    kind, fence = entry[b"t"].decode(), int(entry[b"f"])
    if kind == "piece":
        said = unpack(entry[b"d"], max_bytes=MAX_ANSWER_BYTES)
        return Written(kind, fence, int(entry[b"s"]), said.get("text", ""), at=said.get("at", 0))
    if kind != "end":
        return Written(kind, fence)
    state = JobState(entry[b"x"].decode())
    outcome = read_outcome(job_id, state, entry[b"d"])
    text = "" if isinstance(outcome, SollolError) else make_answer(outcome).text
    return Written(kind, fence, text=text, state=state.value)


async def _hear_stream(job: AsyncJob) -> tuple[str, bool]:
    """All that it showed, and whether it broke."""
    shown: list[str] = []
    try:
        async for piece in job:
            shown.append(str(piece))
    except SollolError:
        return "".join(shown), True
    return "".join(shown), False
