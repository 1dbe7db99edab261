"""Checks API keys, before anything else of a request is looked at."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping

from sollol_broker.api_keys import ApiKey, KeyRole, digest_of, judge
from sollol_broker.broker import Broker
from sollol_broker.key_store import KeyStore

from .caller import ANYBODY, Caller
from .refusals import Refused

# A revoked key is good for so long at most; looking each one up for each request would double the round trips.
_KEPT_SECONDS = 1.0
_MOST_KEPT = 1000
_PREFIX = "sollol_"


class Doorkeeper:
    """Says who a request's caller is.

    Args:
        needed: whether everybody has to show a key. Otherwise one of ours still counts, and others, which many
            programs send for form's sake, do not.
    """

    def __init__(self, broker: Broker, *, needed: bool) -> None:
        self._store = KeyStore(broker)
        self._needed = needed
        self._kept: OrderedDict[str, tuple[float, ApiKey | None, float]] = OrderedDict()

    async def caller(self, headers: Mapping[str, str], role: KeyRole | None) -> Caller:
        """Who asks.

        Args:
            role: what is needed; None = nothing.

        Raises:
            Refused: 401 or 403.
            BrokerUnavailable: keys cannot be looked up now.
        """
        secret = secret_in(headers)
        if role is None or (not self._needed and not secret.startswith(_PREFIX)):
            return ANYBODY
        key, now = await self._find(secret) if secret else (None, 0.0)
        verdict = judge(key, role, now=now)
        if not verdict.is_allowed:
            raise Refused(verdict.status, verdict.why)
        return Caller(key)

    async def _find(self, secret: str) -> tuple[ApiKey | None, float]:
        digest, at = digest_of(secret), time.monotonic()
        kept = self._kept.get(digest)
        if kept is None or at > kept[0] + _KEPT_SECONDS:
            kept = (at, *await self._store.find(secret))
            self._kept[digest] = kept
            self._kept.move_to_end(digest)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return kept[1], kept[2] + at - kept[0]


def secret_in(headers: Mapping[str, str]) -> str:
    """The API key that a request shows, as the clients of each API do; "" = none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("x-api-key", "").strip()
