"""Who waits for another caller's try to connect does not make his own after it."""

from __future__ import annotations

import asyncio

import pytest

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.link import Link, LinkConfig
from sollol_broker.primary import Address
from sollol_broker.url import parse
from sollol_broker.wire import Wire


class Hanging(Link):
    """A way to a server that answers nothing."""

    tries = 0

    async def _new_wire(self) -> tuple[Wire, Address | None]:
        self.tries += 1
        await asyncio.sleep(3600)
        raise AssertionError


async def test_a_server_that_hangs_is_tried_once_by_all_who_wait() -> None:
    link = Hanging(
        parse("redis://127.0.0.1:1", environ={}),
        slot_key="x",
        name="tests",
        config=LinkConfig(connect_seconds=0.02),
    )
    found = await asyncio.gather(*(link.open() for _ in range(20)), return_exceptions=True)
    assert [type(each) for each in found] == [BrokerUnavailable] * 20
    assert link.tries == 1
    with pytest.raises(BrokerUnavailable, match="did not answer"):
        await link.open()
    assert link.tries == 2
