"""Gives orders to workers and waits for what becomes of them: one inbox, many orders at once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.errors import InvalidJob, SollolError
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.orders import Order, OrderReply, ReplyKind, Sent, Verb, send_order
from sollol_broker.periodic import Periodic
from sollol_broker.version import VERSION
from sollol_broker.words import Entry

log = logging.getLogger(__name__)

APP = "sollol-coordinator"
_INBOX_TTL_MS = 60_000
_ATTEND_SECONDS = 20.0

Progress = Callable[[Mapping[str, Any]], None]


class OrderFailed(SollolError):
    """A worker could not do what it was told.

    Attributes:
        node: that is to blame.
    """

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


class NotLeading(SollolError):
    """The term is over: another coordinator leads, or none."""


class Orders:
    """Orders of one leader for one group at a time.

    Args:
        leader, term: as elected.
    """

    def __init__(self, broker: Broker, *, leader: str, term: int) -> None:
        self._broker = broker
        self._leader = leader
        self._term = term
        self._who = f"k-{secrets.token_hex(8)}"
        self._inbox = Inbox(broker, self._who, on_entry=self._on_entry)
        self._waiting: dict[str, tuple[asyncio.Future[OrderReply], Progress | None]] = {}
        self._attending = Periodic(self._attend, name="orders", seconds=_ATTEND_SECONDS)

    async def __aenter__(self) -> Orders:
        await self._attend()
        self._inbox.start()
        self._attending.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._attending.stop()
        await self._inbox.stop()
        await self._broker.drop_inbox(self._who)

    async def give(
        self,
        node: str,
        worker: str,
        verb: Verb,
        group: str,
        arguments: Mapping[str, Any],
        *,
        timeout_seconds: float,
        progress: Progress | None = None,
    ) -> Mapping[str, Any]:
        """Give an order and wait for its end; gives what the worker found.

        Raises:
            OrderFailed: it could not do it, is gone, or did not answer in time.
            NotLeading: the term is over.
        """
        order = Order(secrets.token_hex(8), verb, group, self._term, self._who, arguments)
        future: asyncio.Future[OrderReply] = asyncio.get_running_loop().create_future()
        self._waiting[order.id] = (future, progress)
        try:
            sent = await send_order(self._broker, self._leader, worker, order)
            if sent is Sent.NOT_LEADING:
                raise NotLeading("another coordinator leads now")
            if sent is Sent.WORKER_GONE:
                raise OrderFailed(f"{node} is gone", node)
            async with asyncio.timeout(timeout_seconds):
                reply = await future
        except TimeoutError:
            raise OrderFailed(f"{node} did not {verb.value} within {timeout_seconds:.0f} s", node) from None
        finally:
            del self._waiting[order.id]
        if reply.kind is ReplyKind.FAILED:
            blamed = str(reply.data.get("node", node))
            raise OrderFailed(f"{node}: {reply.data.get('error', 'it failed')}", blamed)
        return reply.data

    def _on_entry(self, entry: EntryFields) -> None:
        if entry[b"t"] != Entry.REPLY.encode():
            return
        try:
            reply = OrderReply.from_entry(entry)
        except InvalidJob as error:
            log.warning("%s", error)
            return
        future, progress = self._waiting.get(reply.order, (None, None))
        if reply.kind is ReplyKind.PROGRESS:
            if progress is not None:
                progress(reply.data)
        elif future is not None and not future.done():
            future.set_result(reply)

    async def _attend(self) -> None:
        fields = {"version": VERSION}
        if await self._broker.attend(
            self._who, APP, inbox_ttl_ms=_INBOX_TTL_MS, app_fields=fields, app_ttl_ms=_INBOX_TTL_MS
        ):
            self._inbox.rewind()
