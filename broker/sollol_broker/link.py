"""The way to Redis: finds the primary, connects, and repeats what is safe to repeat.

redis-py's own retries are off: it would repeat commands that must not be repeated. Everything that
goes through `Link.call` may be sent twice; the functions of the library are made for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    DataError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from .errors import BrokerUnavailable, NotAllowed, QueueFull
from .primary import Address, Primary, tls_options
from .sure_wire import SureWire, Unconfirmed
from .url import BrokerUrl
from .wire import Reply, Wire
from .words import Durability

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
# For one try to connect where another server may take over meanwhile.
_MOVING_CONNECT_SECONDS = 1.5
# Between two looks whether a silent server is still the primary; one that talks is looked at every fifth time.
_GUARD_SECONDS = 1.0
_GUARD_ROUNDS = 5


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
        durability: when a reply comes; None = as soon as the server has it.
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
        durability: Durability | None = None,
        on_missing_function: Callable[[Link], Awaitable[None]] | None = None,
    ) -> None:
        self.url = url
        self.config = config or LinkConfig()
        self._durability = Durability.LOCAL if durability is None else durability
        self._primary = Primary(url, slot_key=slot_key)
        self._name = name
        self._guarding: asyncio.Task[None] | None = None
        self._on_missing_function = on_missing_function
        self.connections = 0
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()
        self._failures, self._failure = 0, ("", False)

    def ready(self) -> Wire | None:
        """The connection if it stands, for callers that pipeline by themselves."""
        return None if self._wire is None or self._wire.is_broken else self._wire

    async def open(self) -> Wire:
        """The connection, made now if there is none: one try, or the outcome of one that another caller is making.

        Raises:
            BrokerUnavailable: no connection within `connect_seconds`, or the login was refused.
        """
        if self._wire is not None and not self._wire.is_broken:
            return self._wire
        failures = self._failures
        async with self._connecting:
            if self._wire is not None:
                if not self._wire.is_broken:
                    return self._wire
                await self._wire.close()
                self._wire = None
            # Where the server hangs, a try takes seconds: whoever waited for another's fails with it.
            if self._failures != failures:
                raise BrokerUnavailable(self._failure[0], refused=self._failure[1])
            try:
                wire, address = await self._try()
            except BrokerUnavailable as error:
                self._failures, self._failure = self._failures + 1, (str(error), error.refused)
                raise
            self._wire = wire
            self.connections += 1
            if address is not None and self._primary.moves:
                self._unguard()
                self._guarding = asyncio.create_task(self._guard(wire, address))
            return wire

    async def _try(self) -> tuple[Wire, Address | None]:
        try:
            async with asyncio.timeout(self.config.connect_seconds):
                return await self._new_wire()
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
        except (RedisError, OSError) as error:
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
        lacks_functions, wire = False, None
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
                    await self._leave(wire)
                elif str(error).startswith(_NO_RIGHT_INSIDE):
                    raise self._no_right(command, error) from None
                else:
                    raise BrokerUnavailable(
                        f"Redis at {self.url} refused a request: {_first_words(error)}", refused=True
                    ) from error
                if time.monotonic() + delay > give_up_at:
                    raise BrokerUnavailable(
                        f"Redis at {self.url} cannot work now: {_first_words(error)}{_what_to_do(error)}"
                    ) from None
            except Unconfirmed as error:
                await self._leave(wire)
                if time.monotonic() + delay > give_up_at:
                    raise BrokerUnavailable(
                        f"Redis at {self.url} has taken it, but {error}. "
                        "Whether it stays is not known: repeat it under its id"
                    ) from None
            except DataError:
                raise  # an argument that no command can carry: a mistake of ours
            except (RedisError, OSError) as error:
                if time.monotonic() + delay > give_up_at:
                    raise BrokerUnavailable(f"lost Redis at {self.url} ({_first_words(error)})") from None
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def calls(self, commands: Sequence[tuple[object, ...]]) -> list[Reply]:
        """`call` for many commands at once, without a task for each: a thousand hashes cost a third.

        Raises:
            as `call`.
        """
        wire = self.ready()
        if wire is None:
            return await asyncio.gather(*(self.call(*command) for command in commands))
        replies = await asyncio.gather(*(wire.send(*each) for each in commands), return_exceptions=True)
        for at, reply in enumerate(replies):
            if isinstance(reply, BaseException):
                replies[at] = await self.call(*commands[at])
        return replies

    def _no_right(self, command: tuple[object, ...], error: RedisError) -> NotAllowed:
        name = str(command[0])
        if name == "FCALL" and isinstance(command[1], bytes):
            name = command[1].decode().rpartition("_")[2]
        return NotAllowed(
            f"Redis at {self.url} does not let user {self.url.username or 'default'} do {name} "
            f"({_first_words(error).partition(' script: ')[0]}): its role is too small for that. `sollol acl` writes a "
            "user for each role; nodes, limits and dead letters are steered by the coordinator's and the admin's, "
            "API keys made by the admin's"
        )

    async def _leave(self, wire: Wire | None) -> None:
        """The primary may be elsewhere by now: the next call looks for it, unless another has done so meanwhile."""
        if self._wire is wire:
            await self.drop()

    async def drop(self) -> None:
        """Give up the present connection; the next call looks for the primary again."""
        wire, self._wire = self._wire, None
        self._unguard()
        if wire is not None:
            await wire.close()

    async def close(self) -> None:
        """Disconnect."""
        guarding = self._guarding
        await self.drop()
        if guarding is not None:
            await asyncio.gather(guarding, return_exceptions=True)

    def _unguard(self) -> None:
        if self._guarding is not None:
            self._guarding.cancel()
            self._guarding = None

    async def _new_wire(self) -> tuple[Wire, Address | None]:
        address = None if self.url.mode == "unix" else await self._primary.find()
        connection, stall = self._connection(address), self.config.stall_seconds
        if self._durability is Durability.LOCAL:
            wire = Wire(connection, stall_seconds=stall)
        else:
            wire = SureWire(connection, stall_seconds=stall)
        async with asyncio.timeout(_MOVING_CONNECT_SECONDS if self._primary.moves else None):
            await wire.open()
            try:
                # Without a login this is the first command, and tells whether one is needed.
                await Wire.send(wire, "CLIENT", "SETNAME", self._name)  # not for a SureWire to confirm
            except NoPermissionError:
                pass  # the name only serves CLIENT LIST
            except BaseException:
                await wire.close()
                raise
        return wire, address

    def _connection(self, address: Address | None) -> AbstractConnection:
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
        if address is None:
            del common["socket_connect_timeout"]
            return UnixDomainSocketConnection(path=url.path, **common)
        tcp = {**common, "host": address[0], "port": address[1], "socket_keepalive": True}
        if url.tls is None:
            return Connection(**tcp)
        return SSLConnection(**tcp, **tls_options(url))

    async def _guard(self, wire: Wire, address: Address) -> None:
        """Leave a server that is no longer the primary: one that hangs, or is cut off, does not hang up by itself."""
        rounds = 0
        while not wire.is_broken:
            replies = wire.replies
            await asyncio.sleep(_GUARD_SECONDS)
            rounds += 1
            if rounds % _GUARD_ROUNDS and not (wire.owes_replies and wire.replies == replies):
                continue
            with contextlib.suppress(RedisError, OSError):
                if await self._primary.find() != address:
                    await wire.close()  # whoever waits there repeats it elsewhere


def _code(error: RedisError) -> str:
    """The code of an error reply; redis-py cuts it off the text of those that it knows."""
    return error.status_code or str(error).partition(" ")[0]


def _what_to_do(error: RedisError) -> str:
    """The rest of a sentence that tells of a server which cannot work now."""
    if _code(error) == "MISCONF":
        return "; it takes no writes until its disk has room and can be written, and then goes on by itself"
    return ""


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
