"""Which server is the primary now: asks the sentinels, or the nodes of the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

from .errors import BrokerUnavailable
from .url import BrokerUrl

# For each sentinel or cluster node that is asked; one that hangs must not hold up a failover.
_LOOKUP_SECONDS = 1.0

Address = tuple[str, int]


class Primary:
    """Finds the server that takes the fabric's writes.

    Args:
        slot_key: a key of the fabric; a Cluster is asked for its primary.
    """

    def __init__(self, url: BrokerUrl, *, slot_key: str) -> None:
        self._url = url
        self._slot = key_slot(slot_key.encode())
        self._nodes = list(url.hosts)

    @property
    def moves(self) -> bool:
        """Whether another server may become it."""
        return self._url.mode in ("sentinel", "cluster")

    async def find(self) -> Address:
        """Its host and port.

        Raises:
            RedisError, OSError: nobody knows.
        """
        if self._url.mode == "sentinel":
            return await self._first_told(
                self._ask_sentinel, f"no sentinel knows a primary {self._url.service!r}"
            )
        if self._url.mode == "cluster":
            return await self._first_told(self._ask_node, "no node of the cluster owns the fabric's slot")
        return self._url.hosts[0]

    async def _first_told(
        self, ask: Callable[[str, int], Awaitable[Address | None]], why_not: str
    ) -> Address:
        """What the first says that knows: which of them hang, nobody can tell beforehand."""
        asking = [asyncio.ensure_future(ask(*each)) for each in self._nodes]
        why: Exception = RedisError(why_not)
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    if (address := await answer) is not None:
                        return address
                    why = RedisError(why_not)
                except (RedisError, OSError) as error:
                    why = error
            raise why
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_sentinel(self, host: str, port: int) -> Address | None:
        name = self._url.service
        reply = await self._ask(
            host, port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name, login=(None, self._url.sentinel_password)
        )
        return None if reply is None else (reply[0].decode(), int(reply[1]))

    async def _ask_node(self, host: str, port: int) -> Address | None:
        """The primary of our slot, if this node knows it; notes all nodes, since those named may go."""
        login = (self._url.username, self._url.password)
        owner = None
        for first, last, *servers in await self._ask(host, port, "CLUSTER", "SLOTS", login=login):
            addresses = [(server[0].decode() if server[0] else host, int(server[1])) for server in servers]
            self._nodes += [each for each in addresses if each not in self._nodes]
            if first <= self._slot <= last:
                owner = addresses[0]
        return owner

    async def _ask(self, host: str, port: int, *command: str, login: tuple[str | None, str | None]) -> Any:
        common: dict[str, Any] = {
            **{"host": host, "port": port, "username": login[0], "password": login[1], "protocol": 2},
            **{"socket_connect_timeout": _LOOKUP_SECONDS, "retry": Retry(NoBackoff(), 0)},
        }
        tls = self._url.tls
        connection = (
            Connection(**common) if tls is None else SSLConnection(**common, **tls_options(self._url))
        )
        try:
            async with asyncio.timeout(_LOOKUP_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                await connection.send_command(*command)
                return await connection.read_response()
        finally:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)


def tls_options(url: BrokerUrl) -> dict[str, Any]:
    """What redis-py wants to know of a URL's TLS.

    Raises:
        BrokerUnavailable: a file cannot be read.
    """
    tls = url.tls
    if tls is None:
        return {}
    for name, path in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        if path and not os.access(path, os.R_OK):
            raise BrokerUnavailable(f"the file that {name}= names cannot be read: {path}", refused=True)
    return {
        "ssl_ca_certs": tls.ca,
        "ssl_certfile": tls.cert,
        "ssl_keyfile": tls.key,
        "ssl_check_hostname": tls.check_hostname,
        "ssl_cert_reqs": "required",
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }
