"""Finds out who asks: by the API key that a request shows, or by its session. Keys are looked up in Redis."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from sollol_broker.api_keys import ApiKey, KeyRole, digest_of, judge
from sollol_broker.errors import BrokerUnavailable
from sollol_broker.key_store import KeyStore

from .config import PageConfig, Role
from .sessions import Sessions, Tries, Visitor, same_secret

# A revoked key is good for so long at most; while Redis does not answer within so long, for so long more.
_KEPT_SECONDS, _LOOK_SECONDS, _AWAY_SECONDS = 2.0, 3.0, 10.0
_MOST_KEPT = 1000
_HERE = Visitor(Role.OPERATOR, "this machine")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A key's record as it was read: at `now` of Redis' clock, `at` of ours; good `until`."""

    key: ApiKey | None
    now: float
    at: float
    until: float


class Guests:
    """Knows who may come in.

    Args:
        run: runs a coroutine in the loop of the broker, and waits for what it gives.
    """

    def __init__(self, config: PageConfig, store: KeyStore, run: Callable[[Awaitable[Any]], Any]) -> None:
        self._config = config
        self._store = store
        self._run = run
        self._lock = Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.sessions = Sessions(time.monotonic)
        self.tries = Tries(time.monotonic)

    def visitor(self, headers: Mapping[str, str], word: str) -> Visitor | None:
        """Who asks; None = nobody that is known.

        Raises:
            BrokerUnavailable: a key that was shown cannot be looked up now.
        """
        scheme, _, secret = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secret.strip():
            digest = digest_of(secret.strip())
            role, name = self._role(digest)
            return Visitor(role, name, digest, is_key=True) if role is not None else None
        found = self.sessions.visitor(word) if word else None
        if found is not None and self.is_good(found):
            return found
        return None if self._config.needs_login else _HERE

    def is_good(self, visitor: Visitor) -> bool:
        """Whether a visitor may stay: it may have logged out, or its key been revoked.

        While Redis is away nobody is turned out.
        """
        if visitor.word and self.sessions.visitor(visitor.word) is None:
            return False
        if not visitor.digest:
            return True
        try:
            return self._role(visitor.digest)[0] is visitor.role
        except BrokerUnavailable:
            return True

    def log_in(self, secret: str, address: str) -> str | None:
        """Let the holder of the password, or of an API key, in; gives the word for the cookie, None = neither.

        Raises:
            BrokerUnavailable: keys cannot be looked up now.
        """
        if self._config.password and same_secret(secret, self._config.password):
            return self.sessions.begin(self._config.password_role, "password")
        digest = digest_of(secret)
        try:
            role, name = self._role(digest)
        except BrokerUnavailable:
            self.tries.failed(address)  # or the password could be guessed at will meanwhile
            raise
        if role is None:
            self.tries.failed(address)
            return None
        return self.sessions.begin(role, name, digest)

    def _role(self, digest: str) -> tuple[Role | None, str]:
        with self._lock:
            kept = self._kept.get(digest)
        at = time.monotonic()
        if kept is None or at > kept.until:
            try:
                key, now = self._run(_soon(self._store.record(digest)))
                kept = _Kept(key, now, at, at + _KEPT_SECONDS)
            except BrokerUnavailable as error:
                if kept is None or error.refused:
                    raise
                kept = replace(kept, until=at + _AWAY_SECONDS)
            with self._lock:
                self._kept[digest] = kept
                self._kept.move_to_end(digest)
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        key, now = kept.key, kept.now + at - kept.at
        if key is None or not judge(key, KeyRole.VIEWER, now=now).is_allowed:
            return None, ""
        return (Role.OPERATOR if key.role is KeyRole.ADMIN else Role.VIEWER), key.name


async def _soon(record: Awaitable[tuple[ApiKey | None, float]]) -> tuple[ApiKey | None, float]:
    """What a store says; each request waits for it, so that it must not hang with Redis."""
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            return await record
    except TimeoutError:
        raise BrokerUnavailable(f"Redis did not answer within {_LOOK_SECONDS:g} s") from None
