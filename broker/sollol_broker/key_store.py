"""API keys in Redis. The admin, the gateway and the page may read them, and only the admin may change them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .api_keys import ApiKey, KeyRole, digest_of, is_of, mint
from .broker import Broker


class KeyStore:
    """A fabric's API keys."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def find(self, secret: str) -> tuple[ApiKey | None, float]:
        """The record of the key that was shown, if it is one of ours, and Redis' time; for `judge`."""
        key, now = await self.record(digest_of(secret))
        return (key if key is not None and is_of(key, secret) else None), now

    async def record(self, digest: str) -> tuple[ApiKey | None, float]:
        """The record under the SHA-256 of a key, if there is one, and Redis' time."""
        found, now = await asyncio.gather(self._call("HGET", self._broker.keys.api_keys, digest), self._now())
        return ApiKey.from_bytes(found or b""), now

    async def add(
        self,
        name: str,
        role: KeyRole,
        *,
        app: str = "",
        models: Sequence[str] = (),
        most_priority: int = 10,
        seconds: float | None = None,
    ) -> tuple[str, ApiKey]:
        """Make a key; it is shown here and never again. For the arguments see `mint`.

        Raises:
            InvalidJob: a value makes no sense; `field` names it.
        """
        secret, key = mint(
            name,
            role,
            now=await self._now(),
            app=app,
            models=models,
            most_priority=most_priority,
            seconds=seconds,
        )
        await self._write(key)
        return secret, key

    async def all(self) -> list[ApiKey]:
        """All keys, revoked and expired ones too, by name and age."""
        values = await self._call("HVALS", self._broker.keys.api_keys)
        keys = (ApiKey.from_bytes(value) for value in values)
        return sorted((key for key in keys if key is not None), key=lambda key: (key.name, key.created))

    async def revoke(self, name_or_id: str) -> list[ApiKey]:
        """Let the keys of this name, or the key with this id, be good for nothing from now on; gives those."""
        now = await self._now()
        named = [key for key in await self.all() if name_or_id in (key.name, key.id) and not key.revoked]
        revoked = [replace(key, revoked=now) for key in named]
        for key in revoked:
            await self._write(key)
        return revoked

    async def _write(self, key: ApiKey) -> None:
        await self._call("HSET", self._broker.keys.api_keys, key.digest, key.to_bytes())

    async def _now(self) -> float:
        seconds, micros = await self._call("TIME")
        return int(seconds) + int(micros) / 1e6

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)
