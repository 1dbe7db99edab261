"""What is far too large is refused at each door, and nobody else notices."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from fabric import worker
from fabric_kit import Fabric, fabric_at
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import BrokerUnavailable, InvalidJob
from sollol_client import AsyncClient

_MIB = 1024 * 1024


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedBroker]:
    with EmbeddedBroker(appendonly=False) as server:
        yield server


@pytest.fixture
async def fabric(server: EmbeddedBroker) -> AsyncIterator[Fabric]:
    async with fabric_at(server.url) as fabric:
        yield fabric


async def _memory(fabric: Fabric, field: str = "used_memory_rss") -> int:
    info = (await fabric.call("INFO", "memory")).decode()
    return int(info.partition(f"{field}:")[2].split()[0])


async def _job_keys(fabric: Fabric) -> list[bytes]:
    keys: list[bytes] = await fabric.call("KEYS", "{sollol}:*")
    return [
        key for key in keys if b":job:" in key or b":blob:" in key or b":queue:" in key or b":fair:" in key
    ]


async def test_a_client_refuses_it_before_anything_is_sent(fabric: Fabric) -> None:
    async with AsyncClient(f"unix://{fabric.broker.url.path}") as client:
        for body in (
            {"chat": "x" * 200 * _MIB},
            {"generate": "look", "images": [bytes(33 * _MIB)]},
            {"generate": "look", "images": [bytes(30 * _MIB)] * 5},
        ):
            with pytest.raises(InvalidJob, match="MiB"):
                await client.submit(**body, model="m", wait_for_node=True)
    assert await _job_keys(fabric) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"envelope": bytes(2 * _MIB)}, "1 MiB"),
        ({"blobs": (bytes(33 * _MIB),)}, "32 MiB"),
        ({"blobs": (bytes(30 * _MIB),) * 5}, "128 MiB"),
        ({"app": "a" * _MIB}, "too long"),
        ({"job_id": "j" * 300}, "at most 200"),
    ],
    ids=["envelope", "picture", "pictures", "name", "id"],
)
async def test_the_function_refuses_what_another_client_sends(
    fabric: Fabric, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(BrokerUnavailable, match=why):
        await fabric.submit(**({"job_id": "j1"} | more), without_node=True)
    fabric.submitted.clear()
    assert await _job_keys(fabric) == []


async def test_oversized_calls_leave_no_memory_behind(fabric: Fabric) -> None:
    await fabric.submit("first", without_node=True)
    before = await _memory(fabric)
    for number in range(50):
        with contextlib.suppress(BrokerUnavailable):
            await fabric.submit(f"j{number}", envelope=bytes(2 * _MIB), without_node=True)
    grown = await _memory(fabric) - before
    assert grown < 50 * _MIB / 2, f"50 calls of 2 MiB left {grown // _MIB} MiB"


async def test_an_argument_of_200_mb_is_refused_unread_and_jobs_go_on(
    server: EmbeddedBroker, fabric: Fabric
) -> None:
    async with (
        worker(server.url, "echo://?slots=2&models=echo"),
        AsyncClient(server.url, cache=False) as client,
    ):
        await client.submit(chat="warm", model="echo")
        before = await _memory(fabric)
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(10)
            raw.connect(urlsplit(server.url).path)
            raw.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$200000000\r\n")
            assert b"invalid bulk length" in raw.recv(1_000)
            assert raw.recv(1_000) == b"", "the connection was kept"
        assert await _memory(fabric) - before < 32 * _MIB
        answers = [await client.submit(chat=f"{number}", model="echo") for number in range(20)]
        assert [answer.text for answer in answers] == [str(number) for number in range(20)]
    with redis.Redis.from_url(server.url) as plain:
        assert plain.get("k") is None
