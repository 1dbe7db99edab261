"""The applications of a fabric: who is there, and what has become of their jobs. Read from Redis alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .app_metadata import metadata_of
from .broker import Broker
from .told import text, texts, whole

# A client gives a sign of life every 20 s and is forgotten after as long as this; who has handed in a job within that
# time is there, too, even without a client of its own.
_ACTIVE_MS = 120_000.0
_MINUTE_MS = 60_000.0


@dataclass(frozen=True, slots=True)
class AppView:
    """An application: what the last of its clients told, and what has become of its jobs.

    Attributes:
        version: of SOLLOL in it. functions: version of its function library.
        durability: when its jobs count as submitted. Each is "" when not known.
        pid: of its process. metadata: whatever it shows beside its name, such as a version of its own.
        is_live: whether a client of it lives; one that asks through a gateway has none.
        seen: when it last gave a sign of life or a job, in seconds since the epoch; seen_seconds_ago: till now.
        submitted, done, failed, cancelled: its jobs of the last while (7 days after the last one all is forgotten);
            failed: all without an answer, save the cancelled.
        per_minute: jobs in the last minute. tokens_in, tokens_out: of its answers.
    """

    name: str
    host: str = ""
    version: str = ""
    functions: str = ""
    durability: str = ""
    pid: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_live: bool = True
    seen: float = 0.0
    seen_seconds_ago: float = 0.0
    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    per_minute: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def own_version(self) -> str:
        """The application's own version, where it tells one; "" = it does not."""
        return str(self.metadata.get("version") or "")

    @property
    def error_rate(self) -> float:
        """Of its jobs that have ended by themselves, the share without an answer."""
        ended = self.done + self.failed
        return round(self.failed / ended, 4) if ended else 0.0


async def read_apps(broker: Broker, *, silent: bool = False, most: int = 0) -> list[AppView]:
    """All applications with a live client, or a job within the last two minutes, by name.

    Args:
        silent: also those of the last 7 days that are silent now.
        most: only so many, those that were there last; 0 = all.
    """
    keys, call = broker.keys, broker.link.call
    seconds, micros = await call("TIME")
    now = int(seconds) * 1000 + int(micros) / 1000
    since = "-inf" if silent else f"{now - _ACTIVE_MS:.3f}"
    flat = await call(
        *("ZRANGE", keys.apps, "+inf", since, "BYSCORE", "REV", "LIMIT", 0, most or -1, "WITHSCORES")
    )
    seen = {text(name): float(at) for name, at in zip(flat[::2], flat[1::2], strict=True)}
    rows = await asyncio.gather(
        *(call("HGETALL", key) for name in seen for key in (keys.app(name), keys.usage(name)))
    )
    told_of = [texts(row) for row in rows]
    found = [
        _app(name, told, counts, at, now)
        for (name, at), told, counts in zip(seen.items(), told_of[::2], told_of[1::2], strict=True)
        if told or "submitted" in counts
    ]
    return sorted(found, key=lambda view: view.name)


async def read_app_names(broker: Broker, *, most: int) -> tuple[tuple[str, ...], int]:
    """Those of the applications that `read_apps` would give, and how many there are; two reads in all.

    Args:
        most: only so many names, those that were there last.
    """
    seconds, micros = await broker.link.call("TIME")
    since = f"{int(seconds) * 1000 + int(micros) / 1000 - _ACTIVE_MS:.3f}"
    names, count = await asyncio.gather(
        broker.link.call("ZRANGE", broker.keys.apps, "+inf", since, "BYSCORE", "REV", "LIMIT", 0, most),
        broker.link.call("ZCOUNT", broker.keys.apps, since, "+inf"),
    )
    return tuple(sorted(text(name) for name in names)), int(count)


def _app(name: str, told: Mapping[str, str], counts: Mapping[str, str], at: float, now: float) -> AppView:
    def count(*names: str) -> int:
        return sum(whole(counts.get(each)) for each in names)

    return AppView(
        name,
        host=told.get("host", ""),
        version=told.get("version", ""),
        functions=told.get("functions", ""),
        durability=told.get("durability", ""),
        pid=told.get("pid", ""),
        metadata=metadata_of(told.get("metadata", "")),
        is_live=bool(told),
        seen=round(at / 1000, 3),
        seen_seconds_ago=round(max(0.0, now - at) / 1000, 1),
        submitted=count("submitted"),
        done=count("done"),
        failed=count("failed", "dead", "expired"),
        cancelled=count("cancelled"),
        per_minute=_per_minute(counts, now),
        tokens_in=count("tokens_in"),
        tokens_out=count("tokens_out"),
    )


def _per_minute(counts: Mapping[str, str], now_ms: float) -> float:
    """From whole minutes: what is left of the last one counts by its share."""
    minute, part = divmod(now_ms / _MINUTE_MS, 1)
    age = minute - whole(counts.get("minute"))
    this, last = whole(counts.get("this")), whole(counts.get("last"))
    if age == 0:
        return round(this + last * (1 - part), 1)
    return round(this * (1 - part), 1) if age == 1 else 0.0
