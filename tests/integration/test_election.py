"""Coordinators that stand for election: who leads, and how long each believes that it does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sollol_broker.broker import Broker
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.leader import elect
from sollol_broker.url import parse
from sollol_coordinator.election import Election
from waiting import wait_until

# Long enough that none runs out by itself in these tests.
_LEASE_SECONDS = 30.0


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@asynccontextmanager
async def _candidate(
    url: str, name: str, clock: Clock | None = None, *, lease_seconds: float = _LEASE_SECONDS
) -> AsyncIterator[Election]:
    broker = Broker(parse(url), name=name)
    election = Election(broker, candidate=name, lease_seconds=lease_seconds, clock=clock or Clock())
    election.start()
    try:
        yield election
    finally:
        await election.stop()
        await broker.close()


async def test_a_leader_believes_in_itself_for_less_than_its_lease(redis_url: str) -> None:
    clock = Clock()
    async with _candidate(redis_url, "a", clock) as election:
        assert election.term == 0
        await wait_until(lambda: election.term, timeout=10, what="a to lead")
        clock.seconds += 0.79 * _LEASE_SECONDS
        assert election.term > 0
        clock.seconds += 0.02 * _LEASE_SECONDS
        assert election.term == 0


async def test_a_leader_that_stops_makes_room_for_the_next_one_at_once(redis_url: str) -> None:
    broker = Broker(parse(redis_url), name="onlooker")
    async with _candidate(redis_url, "a") as first:
        await wait_until(lambda: first.term, timeout=10, what="a to lead")
        term = first.term
        assert (await elect(broker, "b", 30_000, patience_seconds=1)).leader == "a"
    assert first.term == 0
    assert (await elect(broker, "b", 30_000, patience_seconds=1)).term > term
    await broker.close()


async def test_it_leads_again_after_redis_was_away() -> None:
    with EmbeddedBroker(appendonly=False) as server:
        async with _candidate(server.url, "a", lease_seconds=0.5) as election:
            await wait_until(lambda: election.term, timeout=10, what="a to lead")
            term = election.term
            server.kill()
            server.start()
            await wait_until(lambda: election.term > term, timeout=20, what="a to lead again")
