"""A worker as a process of its own, for tests that kill it: python worker_process.py URL NODE LEASE BACKEND FENCED."""

from __future__ import annotations

import asyncio
import sys

from sollol_broker.library import Library, build, library, source
from sollol_broker.url import parse
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import connect
from sollol_worker_agent.config import WorkerConfig


def unfenced_library() -> Library:
    """The function library with its fence off: the mutant that a fault test must catch."""
    mutant = source().replace("local FENCED = true", "local FENCED = false")
    assert mutant != source()
    return build(mutant)


async def main() -> None:
    """Work until killed."""
    url, node, lease, backend, fenced = sys.argv[1:]
    config = WorkerConfig(
        node=node,
        lease_seconds=float(lease),
        reap_seconds=float(lease) / 4,
        advertise_seconds=1.0,
        poll_seconds=0.5,
        most_crashes=50,
    )
    functions = library() if fenced == "fenced" else unfenced_library()
    agent = Agent(parse(url), config, [await connect(backend)], functions=functions)
    await agent.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
