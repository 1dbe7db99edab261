"""The leader's verbs: to be elected for a term, and to write what only the present leader may write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .broker import Broker
from .codec import pack
from .names import key_part


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads now.

    Attributes:
        term: of the caller; 0 = it does not lead. left_ms: until the present lease runs out; 0 = nobody leads.
        leader: the present one; "" = nobody.
    """

    term: int
    left_ms: float
    leader: str


async def elect(broker: Broker, candidate: str, lease_ms: int, *, patience_seconds: float) -> Leadership:
    """Become the leader, or stay it for another lease; 0 ms steps down. Safe to repeat.

    A term has one owner, and a later term is greater, even when Redis came back empty or older.

    Args:
        candidate: a name that no other process has, or ever had.
    """
    command = broker.command("elect", candidate, lease_ms)
    term, left_ms, leader = await broker.link.call(*command, patience_seconds=patience_seconds)
    return Leadership(int(term), float(left_ms), leader.decode())


async def write_group(
    broker: Broker, leader: str, term: int, group: str, *, ttl_ms: int, fields: Mapping[str, str]
) -> bool:
    """Write down what a group of nodes is, as the leader; False: the term is over. Safe to repeat."""
    command = broker.command("group", leader, term, key_part(group), ttl_ms, pack(dict(fields)))
    return bool(await broker.link.call(*command) == 1)
