"""Finds out who asks: by the API key that a request shows, or by its session. Keys are looked up in Redis."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from threading import Lock
from typing import Any

from sollol_broker.api_keys import ApiKey, KeyRole, digest_of, judge
from sollol_broker.errors import BrokerUnavailable
from sollol_broker.key_store import KeyStore

from .config import PageConfig, Role
from .sessions import Sessions, Tries, Visitor, same_secret

# A revoked key is good for so long at most.
_KEPT_SECONDS = 2.0
_MOST_KEPT = 1000
_HERE = Visitor(Role.OPERATOR, "this machine")


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
        self._kept: OrderedDict[str, tuple[float, ApiKey | None, float]] = OrderedDict()
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
        """Whether a visitor may stay: its key may have been revoked. While Redis is away nobody is turned out."""
        if visitor.until and visitor.until <= time.monotonic():
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
        role, name = self._role(digest)
        if role is None:
            self.tries.failed(address)
            return None
        return self.sessions.begin(role, name, digest)

    def _role(self, digest: str) -> tuple[Role | None, str]:
        with self._lock:
            kept = self._kept.get(digest)
        at = time.monotonic()
        if kept is None or at > kept[0] + _KEPT_SECONDS:
            kept = (at, *self._run(self._store.record(digest)))
            with self._lock:
                self._kept[digest] = kept
                self._kept.move_to_end(digest)
                while len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
        key, now = kept[1], kept[2] + at - kept[0]
        if key is None or not judge(key, KeyRole.VIEWER, now=now).is_allowed:
            return None, ""
        return (Role.OPERATOR if key.role is KeyRole.ADMIN else Role.VIEWER), key.name
