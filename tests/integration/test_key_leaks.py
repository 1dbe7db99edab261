"""What lies in Redis, in logs and in names: everything ends, and no prompt stays behind."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import pytest
import redis
import redis.asyncio

from fabric import CHAT_MODEL, EMBED_MODEL, worker
from sollol import AsyncClient, Priority
from sollol_broker.broker import Broker, ClaimRequest, LaneOffer, ModelOffer
from sollol_broker.claim_rule import share_of
from sollol_broker.envelope import Envelope
from sollol_broker.errors import SollolError
from sollol_broker.keys import Keys, is_permanent
from sollol_broker.url import parse
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

CANARY = "xylophone-canary"
PICTURE = b"\x89PNG canary-picture " + bytes(range(256)) * 200
PICTURE_TEXT = base64.b64encode(PICTURE).decode()
MESSAGES = [{"role": "user", "content": CANARY, "images": [PICTURE_TEXT]}]


async def test_after_a_mixed_run_everything_ends_and_no_prompt_is_left(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        OllamaDouble([CHAT_MODEL, EMBED_MODEL], parallel=2) as ollama,
        worker(redis_url, ollama.url, slots=2),
        AsyncClient(redis_url, app="keys") as client,
    ):
        await _mixed_run(client, ollama)
        with redis.Redis.from_url(redis_url) as raw:
            keys = [bytes(key).decode() for key in raw.scan_iter(count=1000)]
            assert [key for key in keys if raw.ttl(key) == -1 and not is_permanent(key)] == []
            assert [
                key for key in keys if CANARY in key or "picture" in key or PICTURE_TEXT[:40] in key
            ] == []
            left = {key: value for key in keys if _tells(value := _value(raw, key))}
            assert left == {}
            assert raw.slowlog_get() == []
    assert len(ollama.seen.requests) > 5
    told = [record for record in caplog.records if _tells(vars(record)) or _tells(record.getMessage())]
    assert told == []
    assert len(caplog.records) > 5, "nothing was logged, so this proved nothing"


async def test_a_waiting_job_lies_in_redis_as_a_small_envelope_and_its_picture_beside_it(
    redis_url: str,
) -> None:
    keys = Keys()
    async with AsyncClient(redis_url) as client, redis.asyncio.Redis.from_url(redis_url) as raw:
        text = client.submit(chat=MESSAGES, model="tiny", wait_for_node=True)
        same = client.submit(generate=CANARY, images=[PICTURE], model="tiny", wait_for_node=True)
        await wait_until(lambda: client.position(same.id), timeout=5, what="both to wait")
        for job in (text, same):
            body = await raw.hgetall(keys.blob(job.id))
            assert len(body.pop(b"env")) < 300
            assert body == {b"0": PICTURE}
            assert not _tells(await raw.hgetall(keys.job(job.id)))
        async with OllamaDouble([CHAT_MODEL]) as ollama, worker(redis_url, ollama.url):
            await asyncio.gather(text, same)
        (_, chat), (_, generate) = sorted(ollama.seen.requests, key=lambda request: request[0])
        assert chat["messages"] == MESSAGES
        assert generate["images"] == [PICTURE_TEXT]
        assert generate["prompt"] == CANARY
        for job in (text, same):
            assert not await raw.exists(keys.blob(job.id))


async def test_metadata_and_trace_reach_whoever_claims_the_job(redis_url: str) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    broker = Broker(parse(redis_url), name="claimer")
    await broker.open()
    await broker.advertise(
        "w1",
        "n1",
        ttl_ms=5000,
        worker_fields={"state": "up"},
        node_fields={"host": "h"},
        models={"tiny": share_of(load_ms=0, prompt_ms=1, output_ms=1)},
    )
    async with AsyncClient(redis_url, app="keys") as client:
        job = client.submit(
            chat="hi",
            model="tiny",
            metadata={"user": "me", "tags": ["a", 1]},
            trace=trace,
            session="conv-17",
            priority=Priority.HIGH,
            timeout=12,
            options={"temperature": 0},
        )
        await wait_until(lambda: _waits(client, job.id), timeout=5, what="it to wait")
        lane = LaneOffer(1, (ModelOffer("tiny", 0.0, 1.0, 1.0),))
        claims = await broker.claim(ClaimRequest("w1", "n1", "n0nce", 5000, (lane,), 1))
        assert claims is not None
        (claimed,) = claims.jobs
        envelope = Envelope.from_bytes(claimed.envelope)
        await job.cancel()
    await broker.leave("w1")
    await broker.close()
    assert claimed.lease.job_id == job.id
    assert envelope.metadata == {"user": "me", "tags": ["a", 1]}
    assert envelope.trace is not None
    assert envelope.trace.model_dump() == trace
    assert (envelope.app, envelope.session, envelope.priority) == ("keys", "conv-17", 7)
    assert envelope.timeout_seconds == 12
    assert envelope.payload["options"] == {"temperature": 0}


async def _mixed_run(client: AsyncClient, ollama: OllamaDouble) -> None:
    """Jobs of each kind, with each kind of end but death."""
    jobs = [
        client.submit(chat=MESSAGES, model="tiny"),
        client.submit(chat=CANARY, model="tiny", stream=True),
        client.submit(generate=CANARY, model="tiny", system=CANARY, images=[PICTURE]),
        client.submit(embed=[CANARY], model="tiny-embed"),
        client.submit(chat=CANARY, model="tiny", idempotency_key="a-key", priority=9, result_ttl=60),
        client.submit(chat=CANARY, model="gone"),
        client.submit(chat=CANARY, model="gone", wait_for_node=True, deadline=0.1),
        client.submit(chat=CANARY, model="tiny", requires={"node": "n1"}, metadata={"a": 1}, session="s"),
    ]
    await asyncio.gather(*jobs, return_exceptions=True)
    ollama.faults.answer_status, ollama.faults.answer_text = 400, f"cannot make sense of: {CANARY}"
    failed = client.submit(chat=MESSAGES, model="tiny")
    with pytest.raises(SollolError) as error:
        await failed
    assert CANARY not in str(error.value)
    ollama.faults.answer_status = 0
    ollama.faults.die_after_tokens = 2
    late = client.submit(chat=MESSAGES, model="tiny", stream=True)
    await wait_until(lambda: _has_failed_once(client, late.id), timeout=5, what="an error")
    ollama.faults.die_after_tokens = None
    await late
    ollama.tokens_may_flow.clear()
    running = [client.submit(chat=MESSAGES, model="tiny") for _ in range(3)]
    await wait_until(lambda: ollama.seen.generating == 2, timeout=5, what="both slots to be taken")
    for job in running:
        await job.cancel()
    await wait_until(lambda: ollama.seen.generating == 0, timeout=5, what="the backend to be free")
    ollama.tokens_may_flow.set()


async def _has_failed_once(client: AsyncClient, job_id: str) -> bool:
    view = await client.job(job_id)
    return view is not None and view.errors > 0


async def _waits(client: AsyncClient, job_id: str) -> bool:
    return await client.position(job_id) == 0


def _tells(value: object) -> bool:
    told = repr(value)
    return CANARY in told or "canary-picture" in told or PICTURE_TEXT[:40] in told


def _value(raw: Any, key: str) -> Any:
    """Whatever a key holds."""
    kind = raw.type(key).decode()
    if kind == "hash":
        return raw.hgetall(key)
    if kind == "stream":
        return raw.xrange(key)
    if kind == "zset":
        return raw.zrange(key, 0, -1)
    return raw.lrange(key, 0, -1) if kind == "list" else raw.get(key)
