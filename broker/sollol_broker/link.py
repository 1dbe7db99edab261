"""The way to Redis: finds the primary, connects, and repeats what is safe to repeat.

redis-py's own retries are off: it would repeat commands that must not be repeated. Everything that
goes through `Link.call` may be sent twice; the functions of the library are made for that.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    DataError,
    NoPermissionError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from .errors import BrokerUnavailable, NotAllowed, QueueFull
from .url import BrokerUrl
from .wire import Reply, Wire

# Codes of error replies after which the same request will work, here or on the new primary.
_PASSING = frozenset(
    (
        *("LOADING", "READONLY", "MOVED", "ASK", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "BUSY", "MISCONF"),
        *("NOREPLICAS", "UNBLOCKED"),  # the last: a blocked read, when its server stops being the primary
    )
)
# How a function tells of a right that its caller lacks: Valkey, Redis.
_NO_RIGHT_INSIDE = ("ACL failure in script", "The user executing the script can't")
_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 1.0
# For each sentinel or cluster node that is asked for the primary; the next one is asked after that.
_LOOKUP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How patient a link is.

    Attributes:
        connect_seconds: for one try to connect, login included.
        patience_seconds: how long a call is repeated over lost connections before it gives up.
        stall_seconds: a connection that owes replies and is silent so long is taken for dead.
    """

    connect_seconds: float = 5.0
    patience_seconds: float = 30.0
    stall_seconds: float = 5.0


class Link:
    """A pipelined connection to the fabric's primary, made anew whenever it breaks.

    Args:
        url: where Redis is.
        slot_key: a key of the fabric; a Cluster is asked for its primary.
        name: shown by CLIENT LIST.
        on_missing_function: called when the server lacks our functions; loads them.

    Attributes:
        connections: how often it has connected: after another one, the server may be another, or an older copy.
    """

    def __init__(
        self,
        url: BrokerUrl,
        *,
        slot_key: str,
        name: str,
        config: LinkConfig | None = None,
        on_missing_function: Callable[[Link], Awaitable[None]] | None = None,
    ) -> None:
        self.url = url
        self.config = config or LinkConfig()
        self._slot_key = slot_key
        self._name = name
        self._on_missing_function = on_missing_function
        self.connections = 0
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()

    def ready(self) -> Wire | None:
        """The connection if it stands, for callers that pipeline by themselves."""
        return None if self._wire is None or self._wire.is_broken else self._wire

    async def open(self) -> Wire:
        """The connection, made now if there is none: one try.

        Raises:
            BrokerUnavailable: no connection within `connect_seconds`, or the login was refused.
        """
        if self._wire is not None and not self._wire.is_broken:
            return self._wire
        async with self._connecting:
            if self._wire is not None:
                if not self._wire.is_broken:
                    return self._wire
                await self._wire.close()
                self._wire = None
            try:
                async with asyncio.timeout(self.config.connect_seconds):
                    wire = await self._opened_wire()
            except (AuthenticationError, AuthorizationError) as error:
                raise BrokerUnavailable(
                    f"Redis at {self.url} refused the login ({_first_words(error)}): user and password stand in the "
                    "URL, redis://USER:PASSWORD@HOST, or the password in SOLLOL_REDIS_PASSWORD",
                    refused=True,
                ) from None
            except BrokerUnavailable:
                raise
            except TimeoutError:
                raise BrokerUnavailable(
                    f"Redis at {self.url} did not answer within {self.config.connect_seconds:g} s: "
                    "check the address, the firewall and whether the server hangs"
                ) from None
            except (RedisError, RedisClusterException, OSError) as error:
                if self.url.tls is not None and _is_about_tls(error):
                    raise BrokerUnavailable(
                        f"the TLS handshake with Redis at {self.url} failed ({_first_words(error)}): ca= must name "
                        "the CA that signed the server's certificate, and that certificate the host; where the server "
                        "wants a certificate of us, cert= and key= name it",
                        refused="certificate" in str(error),
                    ) from None
                raise BrokerUnavailable(
                    f"cannot reach Redis at {self.url} ({_first_words(error)}): is it running, and is the "
                    "address right? `sollol up` starts one here; SOLLOL_REDIS_URL or --redis names another"
                ) from None
            self._wire = wire
            self.connections += 1
            return wire

    async def _opened_wire(self) -> Wire:
        wire = Wire(await self._connection(), stall_seconds=self.config.stall_seconds)
        await wire.open()
        try:
            # Without a login this is the first command, and tells whether one is needed.
            await wire.send("CLIENT", "SETNAME", self._name)
        except NoPermissionError:
            pass  # the name only serves CLIENT LIST
        except BaseException:
            await wire.close()
            raise
        return wire

    async def call(self, *command: object, patience_seconds: float | None = None) -> Reply:
        """Send a command that is safe to repeat, and repeat it until its reply has come.

        Raises:
            BrokerUnavailable: patience ran out, or the server refuses us.
            QueueFull: the server's memory is full.
            redis.exceptions.ResponseError, DataError: the command itself is wrong: a mistake of ours.
        """
        patience = self.config.patience_seconds if patience_seconds is None else patience_seconds
        give_up_at = time.monotonic() + patience
        delay = _FIRST_DELAY_SECONDS
        lacks_functions = False
        while True:
            try:
                if lacks_functions and self._on_missing_function is not None:
                    await self._on_missing_function(self)
                    lacks_functions = False
                wire = await self.open()
                return await wire.send(*command)
            except NoPermissionError as error:
                raise self._no_right(command, error) from None
            except (AuthenticationError, AuthorizationError) as error:
                raise BrokerUnavailable(
                    f"Redis at {self.url} does not let us in: {_first_words(error)}", refused=True
                ) from None
            except OutOfMemoryError:
                raise QueueFull(
                    "Redis has no memory left: wait, or raise its maxmemory", retry_after=5.0
                ) from None
            except BrokerUnavailable as error:
                if error.refused or time.monotonic() + delay > give_up_at:
                    raise
            except ResponseError as error:
                if "Function not found" in str(error) and self._on_missing_function is not None:
                    lacks_functions = True
                elif _code(error) in _PASSING:
                    await self.drop()  # the primary may be elsewhere by now
                elif str(error).startswith(_NO_RIGHT_INSIDE):
                    raise self._no_right(command, error) from None
                else:
                    raise BrokerUnavailable(
                        f"Redis at {self.url} refused a request: {_first_words(error)}", refused=True
                    ) from error
                if time.monotonic() + delay > give_up_at:
                    raise BrokerUnavailable(
                        f"Redis at {self.url} cannot work now: {_first_words(error)}"
                    ) from None
            except DataError:
                raise  # an argument that no command can carry: a mistake of ours
            except (RedisError, OSError) as error:
                if time.monotonic() + delay > give_up_at:
                    raise BrokerUnavailable(f"lost Redis at {self.url} ({_first_words(error)})") from None
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    def _no_right(self, command: tuple[object, ...], error: RedisError) -> NotAllowed:
        name = str(command[0])
        if name == "FCALL" and isinstance(command[1], bytes):
            name = command[1].decode().rpartition("_")[2]
        return NotAllowed(
            f"Redis at {self.url} does not let user {self.url.username or 'default'} do {name} "
            f"({_first_words(error).partition(' script: ')[0]}): its role is too small for that. `sollol acl` writes a "
            "user for each role; nodes, limits and dead letters are steered by the coordinator's and the admin's"
        )

    async def drop(self) -> None:
        """Give up the present connection; the next call looks for the primary again."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def close(self) -> None:
        """Disconnect."""
        await self.drop()

    async def _connection(self) -> AbstractConnection:
        url = self.url
        common: dict[str, Any] = {
            "db": url.db,
            "username": url.username,
            "password": url.password,
            "driver_info": None,  # CLIENT SETINFO is a right that Redis 7.0 does not know
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            # Only the Wire judges silence; redis-py's timer per read would cost each token.
            "socket_timeout": None,
            "socket_connect_timeout": self.config.connect_seconds,
        }
        if url.mode == "unix":
            del common["socket_connect_timeout"]
            return UnixDomainSocketConnection(path=url.path, **common)
        host, port = await self._primary()
        tcp = {**common, "host": host, "port": port, "socket_keepalive": True}
        if url.tls is None:
            return Connection(**tcp)
        return SSLConnection(**tcp, **self._tls_options())

    def _tls_options(self) -> dict[str, Any]:
        tls = self.url.tls
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

    async def _primary(self) -> tuple[str, int]:
        url = self.url
        if url.mode == "sentinel":
            options: dict[str, Any] = {
                "socket_timeout": _LOOKUP_SECONDS,
                "socket_connect_timeout": _LOOKUP_SECONDS,
                "retry": Retry(NoBackoff(), 0),
                "password": url.sentinel_password,
                "protocol": 2,
            }
            if url.tls is not None:
                options |= {"ssl": True, **self._tls_options()}
            sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                list(url.hosts), sentinel_kwargs=options
            )
            try:
                host, port = await sentinel.discover_master(url.service)
                return str(host), int(port)
            finally:
                for each in sentinel.sentinels:
                    await each.aclose()
        if url.mode == "cluster":
            nodes = [ClusterNode(host, port) for host, port in url.hosts]
            tls: dict[str, Any] = {"ssl": True, **self._tls_options()} if url.tls is not None else {}
            cluster = RedisCluster(
                startup_nodes=nodes,
                username=url.username,
                password=url.password,
                protocol=2,
                socket_timeout=_LOOKUP_SECONDS,
                socket_connect_timeout=_LOOKUP_SECONDS,
                **tls,
            )
            try:
                await cluster.initialize()
                node = cluster.get_node_from_key(self._slot_key)
                if node is None:
                    raise RedisError("no node of the cluster owns the fabric's slot")
                return str(node.host), int(node.port)
            finally:
                await cluster.aclose()
        return url.hosts[0]


def _code(error: RedisError) -> str:
    """The code of an error reply; redis-py cuts it off the text of those that it knows."""
    return error.status_code or str(error).partition(" ")[0]


def _is_about_tls(error: BaseException) -> bool:
    """redis-py hands on what OpenSSL said, but only as text. A server that wants our certificate may just hang up."""
    return any(word in str(error).lower() for word in ("certificate", "ssl", "reset by peer"))


def _first_words(error: BaseException) -> str:
    """What a foreign error says, short, on one line, and without the URL it may quote."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError):
        # redis-py words it at length; numbers below 0 are the resolver's, which names them itself.
        return (os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or "").lower()
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:160]
