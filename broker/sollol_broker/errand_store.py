"""Errands: what gateways owe a batch beside its answers, such as reading its input file and telling of its end.

They lie in Redis, so that any gateway goes on with those of one that died.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .broker import Broker
from .codec import pack, unpack

# One whose gateway has died is missed after so long.
LEASE_MS = 15_000
_DAY_MS = 24 * 3600 * 1000
# Longer than any errand takes, and then as long as somebody may ask how it ended.
_TTL_MS = 8 * _DAY_MS
_MOST_RECORD_BYTES = 1024 * 1024
_MOST_LISTED = 10_000
_RECORD, _END, _CANCEL = "record", "end", "cancel"


@dataclass(frozen=True, slots=True)
class Errand:
    """An errand.

    Attributes:
        id: of its batch. record: what is to be done, and how far it is. is_over: nothing is left to do.
        is_cancelled: somebody wants it to end.
    """

    id: str
    record: Mapping[str, Any]
    is_over: bool = False
    is_cancelled: bool = False


class ErrandStore:
    """The errands of a fabric. Two gateways may come to have the same one: what they do has to bear that."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._keys = broker.keys

    async def put(self, errand_id: str, record: Mapping[str, Any], *, listed_for: str | None = None) -> None:
        """Take one in; the next gateway that looks sees to it.

        Args:
            listed_for: the application whose `of` tells of it.
        """
        await self._write(errand_id, _RECORD, record)
        if listed_for is not None:
            key = self._keys.errands_of(listed_for)
            await self._call("ZADD", key, round(await self.now_ms()), errand_id)
            await self._call("PEXPIRE", key, _TTL_MS)
        await self._call("ZADD", self._keys.errands, "NX", 0, errand_id)

    async def find(self, errand_id: str) -> Errand | None:
        """One of them; None = it is not known."""
        found = await self._call("HMGET", self._keys.errand(errand_id), _END, _RECORD, _CANCEL)
        end, record, cancel = found
        if end is None and record is None:
            return None
        seal = self._broker.seal
        what, sealed = (_RECORD, record) if end is None else (_END, end)
        opened = seal.open(bytes(sealed), errand_id, f"errand:{what}", must=seal.is_on)
        plain = unpack(opened, max_bytes=_MOST_RECORD_BYTES)
        return Errand(errand_id, plain, is_over=end is not None, is_cancelled=cancel is not None)

    async def of(self, app: str) -> list[str]:
        """An application's errands, the newest first."""
        oldest = await self.now_ms() - _TTL_MS
        await self._call("ZREMRANGEBYSCORE", self._keys.errands_of(app), "-inf", round(oldest))
        rows = await self._call("ZRANGE", self._keys.errands_of(app), 0, _MOST_LISTED - 1, "REV")
        return [row.decode() for row in rows]

    async def update(self, errand_id: str, record: Mapping[str, Any]) -> None:
        """Note how far it is."""
        await self._write(errand_id, _RECORD, record)

    async def cancel(self, errand_id: str) -> None:
        """Let it end; whoever has it hears of that."""
        await self._call("HSET", self._keys.errand(errand_id), _CANCEL, 1)
        await self._call("PEXPIRE", self._keys.errand(errand_id), _TTL_MS)

    async def end(self, errand_id: str, record: Mapping[str, Any]) -> bool:
        """It is done; the first word on how stays. Whether that is this one."""
        key, sealed = self._keys.errand(errand_id), self._sealed(errand_id, _END, record)
        await self._broker.sure_link.call("HSETNX", key, _END, sealed)
        await self._call("PEXPIRE", key, _TTL_MS)
        await self.forget(errand_id)
        # The reply may have been lost, and the call repeated; what stands there tells.
        return bool(await self._call("HGET", key, _END) == sealed)

    async def forget(self, errand_id: str) -> None:
        """Nobody needs to see to it any more."""
        await self._call("ZREM", self._keys.errands, errand_id)

    async def claim(self, most: int) -> list[str]:
        """Errands that nobody sees to; from now on the caller does, for `LEASE_MS`."""
        now = await self.now_ms()
        rows = await self._call("ZRANGEBYSCORE", self._keys.errands, "-inf", round(now), "LIMIT", 0, most)
        found = [row.decode() for row in rows]
        for errand_id in found:
            await self._call("ZADD", self._keys.errands, "XX", "GT", round(now + LEASE_MS), errand_id)
        return found

    async def renew(self, errand_id: str) -> None:
        """The caller goes on with it."""
        due = round(await self.now_ms() + LEASE_MS)
        await self._call("ZADD", self._keys.errands, "XX", "GT", due, errand_id)

    async def leave(self, errand_id: str) -> None:
        """Another gateway may go on with it at once."""
        await self._call("ZADD", self._keys.errands, "XX", 0, errand_id)

    async def now_ms(self) -> float:
        """Redis' clock."""
        seconds, micros = await self._call("TIME")
        return int(seconds) * 1000 + int(micros) / 1000

    async def _write(self, errand_id: str, what: str, record: Mapping[str, Any]) -> None:
        key = self._keys.errand(errand_id)
        await self._broker.sure_link.call("HSET", key, what, self._sealed(errand_id, what, record))
        await self._call("PEXPIRE", key, _TTL_MS)

    def _sealed(self, errand_id: str, what: str, record: Mapping[str, Any]) -> bytes:
        return self._broker.seal.close(pack(dict(record)), errand_id, f"errand:{what}")

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)
