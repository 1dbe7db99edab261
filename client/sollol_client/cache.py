"""The answers that this process keeps. Nothing here talks to Redis.

A key names a request and the generation of its model's answers: dropping answers begins a new generation, and
nobody who knows of it asks for the old keys again.
"""

from __future__ import annotations

import base64
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.errors import InvalidJob
from sollol_broker.names import canonical_model, key_part

from .cache_key import KEY_DIGITS, CacheSettings, cache_key, is_cacheable, scope_field

# Larger ones are fetched from Redis again: a thousand of them would be a quarter of a GiB.
MAX_KEPT_BYTES = 256 * 1024
_EXPORT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that can serve again: the job that gave it, and its terminal entry as Redis had it.

    Attributes:
        app: whose it is; "" = the cache's own.
    """

    model: str
    job_id: str
    data: bytes
    until: float
    app: str = ""


@dataclass(slots=True)
class _Counts:
    hits: int = 0
    misses: int = 0
    shared: int = 0
    evictions: int = 0


@dataclass(slots=True)
class AnswerCache:
    """The answers that this process keeps, least recently used first out. Any thread may call any method.

    Args:
        app: the application's name.
        clock: monotonic seconds. wall: seconds since the epoch, for exports.
    """

    app: str
    settings: CacheSettings = field(default_factory=CacheSettings)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _generations: dict[str, int] = field(default_factory=dict)
    _counts: _Counts = field(default_factory=_Counts)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def scope_field(self) -> str:
        """See the function."""
        return scope_field(self.app, self.settings.scope)

    def key_for(
        self,
        kind: str,
        model: str,
        payload: Mapping[str, Any],
        blobs: Sequence[bytes],
        *,
        needs: bytes = b"",
        asked: bool | None = None,
        app: str = "",
    ) -> str:
        """The key under which a request shares its answer now; "" = it must not.

        Args:
            app: whose request it is; "" = the cache's own.
        """
        if not is_cacheable(kind, payload, asked, enabled=self.settings.enabled):
            return ""
        request = cache_key(app or self.app, kind, model, payload, blobs, self.settings.scope, needs)
        return request + self._generation(model, app)

    def find(self, key: str) -> Kept | None:
        """The answer kept for a request, if there is one; counted as a hit or a miss."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.until <= self.clock():
                self._drop(key)
                kept = None
            if kept is None:
                self._counts.misses += 1
                return None
            self._kept.move_to_end(key)
            self._counts.hits += 1
            return kept

    def keep(
        self,
        key: str,
        model: str,
        job_id: str,
        data: bytes,
        seconds: float | None = None,
        *,
        app: str = "",
    ) -> bool:
        """Keep an answer; False where it is too large, or of a generation that was dropped meanwhile."""
        ttl = self.settings.ttl_seconds if seconds is None else min(seconds, self.settings.ttl_seconds)
        with self._lock:
            if len(data) > min(MAX_KEPT_BYTES, self.settings.max_bytes) or ttl <= 0:
                return False
            if not self.settings.max_size or not key.endswith(self._generation(model, app)):
                return False
            self._drop(key)
            self._kept[key] = Kept(model, job_id, data, self.clock() + ttl, app)
            self._bytes += len(data)
            while len(self._kept) > self.settings.max_size or self._bytes > self.settings.max_bytes:
                self._drop(next(iter(self._kept)))
                self._counts.evictions += 1
            return True

    def forget(self, key: str) -> None:
        """Drop one answer."""
        with self._lock:
            self._drop(key)

    def count_shared(self) -> None:
        """What was counted as a miss has found another request's answer in Redis."""
        with self._lock:
            self._counts.misses -= 1
            self._counts.shared += 1

    def note_generations(self, generations: Mapping[str, int]) -> None:
        """Take in what `Keys.caches` says, and drop the answers of older generations."""
        with self._lock:
            if dict(generations) == self._generations:
                return
            self._generations = dict(generations)
            self._drop_where(lambda key, kept: not key.endswith(self._generation(kept.model, kept.app)))

    def note_generation(self, name: str, generation: int) -> None:
        """One field of `Keys.caches` has changed."""
        self.note_generations({**self._generations, name: generation})

    def keys_of(self, model_key: str) -> set[str]:
        """The keys of a model's answers kept here."""
        with self._lock:
            return {key for key, kept in self._kept.items() if key_part(kept.model) == model_key}

    def clear(self) -> None:
        """Drop all answers kept here; the counters stay."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def stats(self) -> dict[str, Any]:
        """Counters since the client was made. hit_rate: hits and shared ones among all that could have been."""
        with self._lock:
            counts, settings = self._counts, self.settings
            found = counts.hits + counts.shared
            asked = found + counts.misses
            return {
                "enabled": settings.enabled,
                "scope": settings.scope,
                "hits": counts.hits,
                "shared": counts.shared,
                "misses": counts.misses,
                "hit_rate": found / asked if asked else 0.0,
                "size": len(self._kept),
                "bytes": self._bytes,
                "evictions": counts.evictions,
                "max_size": settings.max_size,
                "max_bytes": settings.max_bytes,
                "ttl_seconds": settings.ttl_seconds,
            }

    def exported(self) -> dict[str, Any]:
        """The answers kept here as plain data that JSON can hold, least recently used first."""
        with self._lock:
            now, wall = self.clock(), self.wall()
            entries = [
                {
                    "key": key.partition(".")[0],
                    "model": kept.model,
                    "job_id": kept.job_id,
                    "expires_at": round(wall + kept.until - now, 3),
                    "data": base64.b64encode(kept.data).decode(),
                }
                for key, kept in self._kept.items()
                if kept.until > now
            ]
        return {"version": _EXPORT_VERSION, "entries": entries}

    def take_in(self, exported: Mapping[str, Any], check: Callable[[str, bytes], object]) -> int:
        """Keep what `exported` gave, there or elsewhere; how many answers were taken.

        What has run out, or is too large for this cache, is left out.

        Args:
            check: called with each job id and its data; raises InvalidJob where that is no answer.

        Raises:
            InvalidJob: it is not what `exported` made; nothing has been taken.
        """
        entries = [_entry(each) for each in _entries(exported)]
        for _, kept in entries:
            check(kept.job_id, kept.data)
        wall = self.wall()
        return sum(
            self.keep(
                request + self._generation(kept.model), kept.model, kept.job_id, kept.data, kept.until - wall
            )
            for request, kept in entries
        )

    def _generation(self, model: str, app: str = "") -> str:
        of_model = self._generations.get(key_part(model), 0)
        of_app = self._generations.get(scope_field(app or self.app, self.settings.scope), 0)
        return f".{of_model}.{of_app}"

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= len(kept.data)

    def _drop_where(self, is_old: Callable[[str, Kept], bool]) -> None:
        for key in [key for key, kept in self._kept.items() if is_old(key, kept)]:
            self._drop(key)


def _entries(exported: object) -> Sequence[Any]:
    if not isinstance(exported, Mapping) or exported.get("version") != _EXPORT_VERSION:
        raise InvalidJob("import_cache: this is no export of this release", field="data")
    entries = exported.get("entries")
    if not isinstance(entries, list):
        raise InvalidJob("import_cache: the export has no list of entries", field="data")
    return entries


def _entry(entry: object) -> tuple[str, Kept]:
    """A key without its generation, and the answer; `until` in seconds since the epoch."""
    try:
        assert isinstance(entry, Mapping)  # noqa: S101  # turned into InvalidJob below
        key, job_id, until = entry["key"], entry["job_id"], float(entry["expires_at"])
        if len(key) != KEY_DIGITS or int(key, 16) < 0 or not isinstance(job_id, str):
            raise ValueError
        data = base64.b64decode(entry["data"], validate=True)
        return key, Kept(canonical_model(entry["model"]), job_id, data, until)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise InvalidJob("import_cache: an entry is malformed", field="data") from None
