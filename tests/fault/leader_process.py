"""A candidate as a process of its own, for tests that kill it: python leader_process.py URL NAME LEASE FENCED."""

from __future__ import annotations

import asyncio
import sys

from worker_process import unfenced_library

from sollol_broker.broker import Broker
from sollol_broker.errors import BrokerUnavailable
from sollol_broker.leader import write_group
from sollol_broker.library import library
from sollol_broker.url import parse
from sollol_coordinator.election import Election


async def main() -> None:
    """While it leads, write a group without a pause; each order it believes in is a chance to be stale."""
    url, name, lease, fenced = sys.argv[1:]
    functions = library() if fenced == "fenced" else unfenced_library()
    broker = Broker(parse(url), name=name, functions=functions)
    await broker.open()
    election = Election(broker, candidate=name, lease_seconds=float(lease))
    election.start()
    while True:
        # Read once, used for a while: a process may be frozen between its look and its order.
        term = election.term
        for _ in range(20 if term else 0):
            try:
                await write_group(broker, name, term, "g", ttl_ms=60_000, fields={"by": f"{name} {term}"})
            except BrokerUnavailable:
                break
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main())
