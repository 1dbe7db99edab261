"""Who waits for another caller's try to connect does not make his own after it."""

from __future__ import annotations

import asyncio

import pytest

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.link import Link, LinkConfig
from sollol_broker.url import parse


async def test_a_server_that_hangs_is_tried_once_by_all_who_wait() -> None:
    tries = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link(
        parse(f"redis://127.0.0.1:{port}", environ={}),
        slot_key="x",
        name="tests",
        config=LinkConfig(connect_seconds=0.2),
    )
    found = await asyncio.gather(*(link.open() for _ in range(20)), return_exceptions=True)
    assert [type(each) for each in found] == [BrokerUnavailable] * 20
    assert tries == 1
    with pytest.raises(BrokerUnavailable, match="did not answer"):
        await link.open()
    assert tries == 2
    await link.close()
    server.close()
    await server.wait_closed()
