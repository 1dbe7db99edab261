"""Gathers what the doctor wants to know: the one place of it that talks to Redis and the machine."""

from __future__ import annotations

import asyncio
import platform
import statistics
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sollol_broker.api_keys import ApiKey
from sollol_broker.broker import Broker
from sollol_broker.errors import NotAllowed, SollolError
from sollol_broker.key_store import KeyStore
from sollol_broker.link import LinkConfig
from sollol_broker.listeners import Listener, listeners
from sollol_broker.registry import AppView, NodeView, Registry
from sollol_broker.url import BrokerUrl
from sollol_broker.version import VERSION

from .doctor_facts import Access, Facts, Functions

T = TypeVar("T")

# Long enough for a slow network; a doctor that waits half a minute helps nobody.
_PATIENCE_SECONDS = 3.0
_PINGS = 10
_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy", "bind", "port", "tls-port",
             "min-replicas-to-write", "protected-mode", "slowlog-log-slower-than", "slowlog-max-len",
             "commandlog-request-larger-than")  # fmt: skip
_SLOW_CALLS = 128
_DEAD_SHOWN = 3


async def look(url: BrokerUrl) -> Facts:
    """Everything there is to see; what cannot be looked at is left out, with the reason."""
    known: dict[str, Any] = {
        "url": str(url),
        "host": platform.node(),
        "mode": url.mode,
        "durability": url.durability,
        "is_loopback": url.is_loopback,
        "is_protected": bool(url.password or (url.tls and url.tls.cert)),
        "is_encrypted": url.tls is not None,
        "is_sealed": bool(url.payload_keys),
        "version": VERSION,
    }
    config = LinkConfig(connect_seconds=_PATIENCE_SECONDS, patience_seconds=_PATIENCE_SECONDS)
    broker = Broker(url, name="sollol-doctor", config=config)
    try:
        await broker.open()
        return await _Look(broker).facts(known)
    except SollolError as error:
        return Facts(**known, unreachable=str(error))
    finally:
        await broker.close()


@dataclass(slots=True)
class _Look:
    """One visit; each look on its own may fail."""

    broker: Broker
    refused: list[tuple[str, str]] = field(default_factory=list)

    async def facts(self, known: dict[str, Any]) -> Facts:
        """Everything there is to see."""
        dead, dead_ids = await self._try("dead letters", self._dead()) or (None, ())
        return Facts(
            **known,
            latency_ms=await self._try("PING", self._latency_ms()),
            info=await self._try("INFO", self._info()),
            config=await self._try("CONFIG", self._config()),
            access=await self._try("ACL WHOAMI", self._access()),
            slow_calls=await self._try("SLOWLOG", self._slow_calls()),
            functions=await self._functions(),
            clock_ahead_seconds=await self._try("TIME", self._clock_ahead()),
            redis_time=await self._try("TIME", self._redis_time()) or 0.0,
            nodes=await self._try("workers", self._nodes()),
            apps=await self._try("applications", self._apps()),
            api_keys=await self._try("API keys", self._api_keys()),
            vanished=await self._try("vanished workers", self._vanished()) or 0,
            queues=await self._try("queues", self._queues()),
            dead=dead,
            dead_ids=dead_ids,
            listeners=await self._try("open ports of this machine", self._listeners()),
            refused=tuple(self.refused),
        )

    async def _try(self, what: str, looking: Awaitable[T]) -> T | None:
        try:
            return await looking
        except Exception as error:  # a user without rights, a renamed command: one look less, never a crash
            self.refused.append((what, self._reason(error)))
            return None

    async def _info(self) -> dict[str, str]:
        text = (await self._call("INFO")).decode(errors="replace")
        return {
            name: value for name, found, value in (line.partition(":") for line in text.splitlines()) if found
        }

    async def _config(self) -> dict[str, str]:
        return _fields(await self._call("CONFIG", "GET", *_SETTINGS))

    async def _access(self) -> Access:
        user = (await self._call("ACL", "WHOAMI")).decode(errors="replace")
        return Access(user, await self._try("ACL GETUSER", self._default_is_open()))

    async def _default_is_open(self) -> bool:
        reply = await self._call("ACL", "GETUSER", "default")
        flags = dict(zip(reply[::2], reply[1::2], strict=True))[b"flags"]
        return b"on" in flags and b"nopass" in flags

    async def _slow_calls(self) -> int:
        entries = await self._call("SLOWLOG", "GET", _SLOW_CALLS)
        return sum(1 for entry in entries if _is_ours(entry[3]))

    async def _functions(self) -> Functions | None:
        ours = self.broker.functions.name
        listed = await self._try("FUNCTION", self._libraries()) or ()
        others = tuple(name for name in listed if name != ours)
        try:
            # Cancels a job that cannot exist: proves that the functions run, and loads them if missing.
            await self.broker.cancel("doctor")
        except NotAllowed as error:
            self.refused.append(("FCALL", self._reason(error)))
            return None
        except Exception as error:
            return Functions(ours, "unusable", self._words(error), others)
        was_missing = ours not in listed and "FUNCTION" not in dict(self.refused)
        return Functions(ours, "loaded" if was_missing else "present", others=others)

    async def _libraries(self) -> tuple[str, ...]:
        listed = await self._call("FUNCTION", "LIST", "LIBRARYNAME", "sollol_*")
        return tuple(
            dict(zip(each[::2], each[1::2], strict=True))[b"library_name"].decode() for each in listed
        )

    async def _clock_ahead(self) -> float:
        """Of several readings the one with the shortest round trip is the most exact."""
        readings = []
        for _ in range(5):
            sent = time.time()
            seconds, micros = await self._call("TIME")
            received = time.time()
            readings.append((received - sent, (sent + received) / 2 - int(seconds) - int(micros) / 1e6))
        return min(readings)[1]

    async def _latency_ms(self) -> float:
        took = []
        for _ in range(_PINGS):
            sent = time.perf_counter()
            await self._call("PING")
            took.append((time.perf_counter() - sent) * 1000)
        return statistics.median(took)

    async def _nodes(self) -> tuple[NodeView, ...]:
        return tuple(await Registry(self.broker).nodes())

    async def _redis_time(self) -> float:
        return float((await self._call("TIME"))[0])

    async def _apps(self) -> tuple[AppView, ...]:
        return tuple(await Registry(self.broker).apps())

    async def _api_keys(self) -> tuple[ApiKey, ...]:
        return tuple(await KeyStore(self.broker).all())

    async def _queues(self) -> tuple[Any, ...]:
        return tuple(await Registry(self.broker).queues())

    async def _vanished(self) -> int:
        # They are remembered for an hour, but one that has long been started again is no reason to worry.
        now_ms = 1000 * int((await self._call("TIME"))[0])
        return int(await self._call("ZCOUNT", self.broker.keys.workers, now_ms - 60_000, now_ms))

    async def _dead(self) -> tuple[int, tuple[str, ...]]:
        ids = await self._call("ZRANGE", self.broker.keys.dead, 0, _DEAD_SHOWN - 1, "REV")
        return int(await self._call("ZCARD", self.broker.keys.dead)), tuple(each.decode() for each in ids)

    async def _listeners(self) -> tuple[Listener, ...]:
        found = await asyncio.to_thread(listeners)
        if found is None:
            raise SollolError("this system shows them to root only, or psutil is not installed")
        return tuple(found)

    def _reason(self, error: Exception) -> str:
        return "not allowed to look" if isinstance(error, NotAllowed) else self._words(error)

    def _words(self, error: Exception) -> str:
        return " ".join(str(error).split()).removeprefix(f"Redis at {self.broker.url} ")

    async def _call(self, *command: object) -> Any:
        return await self.broker.link.call(*command)


def _fields(flat: list[bytes]) -> dict[str, str]:
    plain = [part.decode(errors="replace") for part in flat]
    return dict(zip(plain[::2], plain[1::2], strict=True))


def _is_ours(arguments: list[bytes]) -> bool:
    return len(arguments) > 1 and arguments[0].upper() == b"FCALL" and arguments[1].startswith(b"sollol_")
