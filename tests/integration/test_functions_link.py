"""The link on a real server: replies find their callers, and lost ones are asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at
from sollol_broker import Broker, Inbox, parse_url
from sollol_broker.library import build, source
from waiting import wait_until


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


async def test_nobody_gets_the_reply_of_a_cancelled_caller(fabric: Fabric) -> None:
    tasks = [asyncio.create_task(fabric.broker.link.call("ECHO", number)) for number in range(2_000)]
    await asyncio.sleep(0)  # each has sent its command, none has its reply
    for task in tasks[::2]:
        task.cancel()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(reply, asyncio.CancelledError) for reply in replies[::2])
    assert replies[1::2] == [str(number).encode() for number in range(1, 2_000, 2)]


async def test_cancelled_at_any_moment(fabric: Fabric) -> None:
    async def echo(number: int) -> bytes:
        async with asyncio.timeout(number % 20 / 10_000):
            reply: bytes = await fabric.broker.link.call("ECHO", number)
            return reply

    for wave in range(10):
        numbers = range(wave * 200, wave * 200 + 200)
        replies = await asyncio.gather(*map(echo, numbers), return_exceptions=True)
        for number, reply in zip(numbers, replies, strict=True):
            assert isinstance(reply, TimeoutError) or reply == str(number).encode()


async def test_calls_go_on_when_the_server_drops_the_connection(fabric: Fabric, redis_url: str) -> None:
    async with fabric_at(redis_url) as other:
        for wave in range(5):
            await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            numbers = range(wave * 50, wave * 50 + 50)
            replies = await asyncio.gather(*(fabric.call("ECHO", number) for number in numbers))
            assert replies == [str(number).encode() for number in numbers]


async def test_functions_that_are_gone_are_not_loaded_by_each_caller(fabric: Fabric) -> None:
    await fabric.call("FUNCTION", "FLUSH")
    await fabric.call("CONFIG", "RESETSTAT")
    states = await asyncio.gather(*(fabric.broker.cancel("nosuchjob") for _ in range(200)))
    assert states == ["unknown"] * 200
    stats = (await fabric.call("INFO", "commandstats")).decode()
    loads = [line for line in stats.splitlines() if line.startswith("cmdstat_function|load:")]
    (calls,) = [int(line.partition("calls=")[2].partition(",")[0]) for line in loads]
    assert 1 <= calls < 20


async def test_two_releases_live_side_by_side(fabric: Fabric, redis_url: str) -> None:
    newer = Broker(parse_url(redis_url), name="newer", functions=build(source() + "\n-- newer\n"))
    try:
        assert await newer.cancel("nosuchjob") == "unknown"
        assert await fabric.broker.cancel("nosuchjob") == "unknown"
        listed = await fabric.call("FUNCTION", "LIST")
        names = {entry[entry.index(b"library_name") + 1].decode() for entry in listed}
        assert {newer.functions.name, fabric.broker.functions.name} <= names
    finally:
        await fabric.call("FUNCTION", "DELETE", newer.functions.name)
        await newer.close()


async def test_a_closed_link_opens_again(fabric: Fabric) -> None:
    await fabric.broker.close()
    assert await fabric.call("PING") == b"PONG"


async def test_an_inbox_hands_on_each_entry_once_and_in_order(fabric: Fabric) -> None:
    await fabric.worker("w1")
    heard: list[dict[bytes, bytes]] = []
    inbox = Inbox(fabric.broker, "w1", on_entry=lambda entry: heard.append(dict(entry)))
    inbox.start()
    try:
        await wait_until(lambda: len(heard) == 1, timeout=5, what="the first entry")
        key = fabric.keys.inbox("w1")
        for number in range(2_500):
            await fabric.call("XADD", key, "*", "n", number)
        await wait_until(lambda: len(heard) == 2_501, timeout=5, what="all entries")
        assert heard[0] == {b"t": b"hello"}
        assert [int(entry[b"n"]) for entry in heard[1:]] == list(range(2_500))

        async def is_short() -> bool:
            return int(await fabric.call("XLEN", key)) < 1_200

        await wait_until(is_short, timeout=5, what="what was read to be cut off")
    finally:
        await inbox.stop()


async def test_an_inbox_outlives_a_broken_key_and_a_lost_connection(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []
    inbox = Inbox(fabric.broker, "w1", on_entry=lambda entry: heard.append(entry[b"t"]))
    await fabric.call("SET", fabric.keys.inbox("w1"), "not a stream", "EX", 60)
    inbox.start()
    try:
        await wait_until(lambda: "WRONGTYPE" in caplog.text, timeout=5, what="the log to tell of it")
        await fabric.call("DEL", fabric.keys.inbox("w1"))
        await fabric.worker("w1")
        await wait_until(lambda: heard == [b"hello"], timeout=5, what="the first entry")
        await fabric.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await fabric.call("XADD", fabric.keys.inbox("w1"), "*", "t", "bell")
        await wait_until(lambda: heard == [b"hello", b"bell"], timeout=5, what="the bell")
    finally:
        await inbox.stop()


async def test_an_odd_entry_does_not_silence_the_inbox(
    fabric: Fabric, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []
    inbox = Inbox(fabric.broker, "c1", on_entry=lambda entry: heard.append(int(entry[b"n"])))
    await fabric.broker.attend("c1", "app", inbox_ttl_ms=60_000, app_fields={}, app_ttl_ms=60_000)
    inbox.start()
    try:
        await fabric.call("XADD", fabric.keys.inbox("c1"), "*", "n", "odd")
        await fabric.call("XADD", fabric.keys.inbox("c1"), "*", "n", 7)
        await wait_until(lambda: heard == [7], timeout=5, what="the good entry")
    finally:
        await inbox.stop()
    assert "could not be handled" in caplog.text
