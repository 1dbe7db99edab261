"""What the leader tells workers to do for a group, and what they reply: the entries, and the verbs that write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .broker import Broker
from .codec import pack, unpack
from .errors import InvalidJob
from .names import key_part

# An order names members and a split; a reply tells devices. Neither comes near.
_MOST_BYTES = 256 * 1024


class Verb(StrEnum):
    """What an order asks for.

    RESERVE: run nothing else, and tell what there is. LEND: lend your memory to the head. LEAD: be the head.
    END: stop all that belongs to the group.
    """

    RESERVE = "reserve"
    LEND = "lend"
    LEAD = "lead"
    END = "end"


class ReplyKind(StrEnum):
    """PROGRESS: still at it. DONE, FAILED: the order's end."""

    PROGRESS = "progress"
    DONE = "done"
    FAILED = "failed"


class Sent(StrEnum):
    """What has become of an order on its way."""

    ON_ITS_WAY = "on its way"
    NOT_LEADING = "not leading"
    WORKER_GONE = "worker gone"


@dataclass(frozen=True, slots=True)
class Order:
    """One order to one worker.

    Attributes:
        id: of the order; a repeated one is carried out once. term: of the leader that gives it.
        reply_to: inbox of whoever waits for it. arguments: what the verb needs, plain data.
    """

    id: str
    verb: Verb
    group: str
    term: int
    reply_to: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_entry(cls, entry: Mapping[bytes, bytes]) -> Order:
        """From an inbox.

        Raises:
            InvalidJob: it is no order that this release knows.
        """
        try:
            data = unpack(entry[b"d"], max_bytes=_MOST_BYTES)
            return cls(
                entry[b"o"].decode(),
                Verb(data["verb"]),
                str(data["group"]),
                int(data["term"]),
                str(data["reply_to"]),
                data["arguments"],
            )
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidJob(f"an order that is not understood here: {error}") from error


@dataclass(frozen=True, slots=True)
class OrderReply:
    """What a worker says of an order. `data`: what it found, or `error`: a text."""

    order: str
    kind: ReplyKind
    data: Mapping[str, Any]

    @classmethod
    def from_entry(cls, entry: Mapping[bytes, bytes]) -> OrderReply:
        """From an inbox; raises InvalidJob like `Order.from_entry`."""
        try:
            data = unpack(entry[b"d"], max_bytes=_MOST_BYTES)
            return cls(entry[b"o"].decode(), ReplyKind(entry[b"k"].decode()), data)
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidJob(f"a reply that is not understood here: {error}") from error


async def send_order(broker: Broker, leader: str, worker: str, order: Order) -> Sent:
    """Give an order, as the leader of its term. Safe to repeat."""
    data = {
        "verb": order.verb.value,
        "group": order.group,
        "term": order.term,
        "reply_to": order.reply_to,
        "arguments": dict(order.arguments),
    }
    reply = await broker.link.call(*broker.command("order", leader, order.term, worker, order.id, pack(data)))
    return {1: Sent.ON_ITS_WAY, 0: Sent.NOT_LEADING}.get(int(reply), Sent.WORKER_GONE)


async def send_reply(broker: Broker, reply_to: str, reply: OrderReply) -> bool:
    """Say what has become of an order; False: nobody waits for it any more. Safe to repeat."""
    data = pack(dict(reply.data))
    command = broker.command("reply", reply_to, reply.order, reply.kind.value, data)
    return bool(await broker.link.call(*command) == 1)


async def set_formable(
    broker: Broker,
    leader: str,
    term: int,
    model: str,
    *,
    ttl_ms: int,
    ok: bool,
    reasons: Mapping[str, str],
    note: str = "",
) -> bool:
    """Say whether a group could serve a model that no worker serves; False: the term is over. Safe to repeat.

    Args:
        note: for the readers of the jobs that wait for it.
    """
    command = broker.command(
        "formable", leader, term, key_part(model), ttl_ms, int(ok), json.dumps(dict(reasons)), note
    )
    return bool(await broker.link.call(*command) >= 0)


async def ask_leader(broker: Broker, wish: Mapping[str, Any]) -> bool:
    """Put a wish to the coordinator that leads; False: there is none. Safe to repeat."""
    return bool(await broker.link.call(*broker.command("ask", pack(dict(wish)))) == 1)
