"""The proxy does what the other tests believe that it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio
from chaos_proxy import ChaosProxy
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[ChaosProxy]:
    async with ChaosProxy(urlsplit(redis_url).path) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: ChaosProxy) -> AsyncIterator[Any]:
    """A client that repeats nothing by itself."""
    retry = Retry(NoBackoff(), 0)
    async with redis.asyncio.Redis.from_url(proxy.url, retry=retry, protocol=2) as client:
        yield client
        await client.delete("n")


async def test_a_command_whose_reply_is_lost_has_been_carried_out(proxy: ChaosProxy, client: Any) -> None:
    proxy.losses["INCRBY"] = 2
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            await client.incrby("n", 1)
    assert await client.incrby("n", 1) == 3
    assert proxy.lost == {"INCRBY": 2}


async def test_a_reply_is_found_among_pipelined_ones(proxy: ChaosProxy, client: Any) -> None:
    proxy.losses["INCRBY"] = 1
    pipeline = client.pipeline(transaction=False)
    pipeline.set("n", "5").get("n").incrby("n", 1).get("n")
    with pytest.raises(RedisConnectionError):
        await pipeline.execute()
    assert await client.get("n") == b"6"


async def test_a_black_hole_tells_nobody(proxy: ChaosProxy, client: Any) -> None:
    await client.set("n", "1")
    proxy.down_flows.clear()
    asking = asyncio.create_task(client.incrby("n", 1))
    await asyncio.wait({asking}, timeout=0.1)
    assert not asking.done()
    proxy.down_flows.set()
    assert await asking == 2


async def test_a_connection_is_cut_at_a_byte(proxy: ChaosProxy, client: Any) -> None:
    await client.set("n", "x" * 100)
    await client.connection_pool.disconnect()
    proxy.cut_after_bytes = range(50, 51)
    with pytest.raises(RedisConnectionError):
        await client.get("n")
    proxy.cut_after_bytes = None
    assert await client.get("n") == b"x" * 100


async def test_delay_and_reset(proxy: ChaosProxy, client: Any) -> None:
    await client.ping()
    proxy.delay_seconds = 0.05
    began_at = time.monotonic()
    await client.ping()
    assert time.monotonic() - began_at >= 0.1
    proxy.delay_seconds = 5.0
    asking = asyncio.create_task(client.ping())
    await asyncio.sleep(0)
    assert proxy.reset_all() == 1
    proxy.delay_seconds = 0.0
    with pytest.raises(RedisConnectionError):
        await asking
