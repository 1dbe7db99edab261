"""What an operator does to the fabric: nodes' controls, limits and quotas, jobs' priorities, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import policy
from .broker import Broker
from .codec import pack
from .controls import Controls
from .errors import InvalidJob
from .fair_order import head_start_ms
from .history import Attempt, attempts
from .names import canonical_model, check_name, key_part
from .policy import Limits
from .words import TERMINAL, JobState, Priority

# Per call, so that Redis is never held up.
_LETTERS_AT_ONCE = 50
_ENDED = tuple(str(state) for state in TERMINAL)


@dataclass(frozen=True, slots=True)
class Controlled:
    """What is set for a node now. `workers`: live ones that were told."""

    node: str
    controls: Controls
    workers: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job that took too many workers down with it. Times in seconds since the epoch.

    Attributes:
        attempts: those that ended without an answer, with node and cause.
    """

    id: str
    model: str
    app: str
    priority: int
    submitted: float
    died: float
    crashes: int
    attempts: tuple[Attempt, ...] = ()


class Operations:
    """An operator's verbs, over one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def control(self, node: str, changes: Mapping[str, Any]) -> Controlled:
        """Change a node's controls (`controls.changes` makes what is wanted); they outlive its workers."""
        check_name(node, "node")
        reply = await self._verb("control", node, key_part(node), pack(dict(changes)))
        return Controlled(node, Controls.from_bytes(bytes(reply[0])), int(reply[1]))

    async def limits(self) -> Limits:
        """What the fabric takes in, and what it holds now."""
        keys = self._broker.keys
        flat, names, stats, running = await asyncio.gather(
            self._call("HGETALL", keys.policy),
            self._call("HGETALL", keys.models),
            self._call("HMGET", keys.stats, "bytes", "submitted", *_ENDED),
            self._call("ZCARD", keys.leases),
        )
        fields = {name.decode(): value for name, value in _pairs(flat)}
        apps = [
            policy.app_name(name.partition(":")[2], fields[name])
            for name in fields
            if name.startswith("app:")
        ]
        counts = await asyncio.gather(*(self._call("HGET", keys.usage(app), "n") for app in apps))
        return policy.read(
            fields,
            {name.decode(): value.decode() for name, value in _pairs(names)},
            unfinished={app: int(n or 0) for app, n in zip(apps, counts, strict=True)},
            waiting=max(0, int(stats[1] or 0) - sum(int(each or 0) for each in stats[2:]) - running),
            bytes_now=max(0, int(stats[0] or 0)),
        )

    async def set_limits(self, changes: Mapping[str, Any], *, model: str = "") -> None:
        """Change limits (`policy.limit_changes`) of the fabric, or `max_queue` of one model's queue.

        Raises:
            InvalidJob: a limit of the fabric is asked for one model.
        """
        if model and set(changes) - {"max_queue"}:
            raise InvalidJob("a model has a limit of waiting jobs only (max_queue_size)", field="model")
        name = canonical_model(model) if model else ""
        await self._verb("policy", name, key_part(name) if name else "", "", "", pack(dict(changes)))

    async def set_quota(self, app: str, changes: Mapping[str, Any]) -> None:
        """Change an application's quota (`policy.quota_changes`)."""
        check_name(app, "app")
        await self._verb("policy", "", "", app, key_part(app), pack(dict(changes)))

    async def dead(self, limit: int = 100) -> list[DeadLetter]:
        """The dead letters, the latest first. Those whose record has expired are taken off the list."""
        keys = self._broker.keys
        flat = await self._call("ZRANGE", keys.dead, 0, limit - 1, "REV", "WITHSCORES")
        died = {job_id.decode(): float(at) / 1000 for job_id, at in _pairs(flat)}
        names = ("state", "model", "app", "priority", "submitted", "born", "crashes", "past")
        rows = await asyncio.gather(*(self._call("HMGET", keys.job(job_id), *names) for job_id in died))
        found, gone = [], []
        for (job_id, at), row in zip(died.items(), rows, strict=True):
            fields = {
                name: value.decode() for name, value in zip(names, row, strict=True) if value is not None
            }
            if fields.get("state") == JobState.DEAD:
                found.append(_letter(job_id, at, fields))
            else:
                gone.append(job_id)
        await self._letters("drop", gone)
        return found

    async def dead_ids(self) -> list[str]:
        """Ids of all dead letters, the oldest first."""
        return [each.decode() for each in await self._call("ZRANGE", self._broker.keys.dead, 0, -1)]

    async def set_priority(self, job_id: str, priority: int) -> str:
        """Give a waiting job another priority: "changed", the state it is in instead, or "unknown".

        Raises:
            InvalidJob: the priority is none.
        """
        if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 10:
            raise InvalidJob(
                f"priority: a whole number from 0 to 10 is needed, got {priority!r}", field="priority"
            )
        word = await self._verb("rerank", job_id, priority, head_start_ms(priority))
        return str(word.decode())

    async def retry(self, ids: Iterable[str]) -> dict[str, str]:
        """Put dead letters, and jobs that failed on every try, back in line: "retried", the state it is in instead
        ("failed": its body is no longer there), "batch" (its batch has taken its end, and an item ends once), or
        "unknown", by id.
        """
        return await self._letters("retry", ids)

    async def drop(self, ids: Iterable[str]) -> dict[str, str]:
        """Forget dead letters: "dropped", the state it is in instead, or "unknown", by id."""
        return await self._letters("drop", ids)

    async def _letters(self, what: str, ids: Iterable[str]) -> dict[str, str]:
        wanted = list(dict.fromkeys(ids))
        found: dict[str, str] = {}
        head_starts = pack([head_start_ms(priority) for priority in range(Priority.CRITICAL + 1)])
        for start in range(0, len(wanted), _LETTERS_AT_ONCE):
            some = wanted[start : start + _LETTERS_AT_ONCE]
            words = await self._verb("letters", what, head_starts, *some)
            found.update(zip(some, (word.decode() for word in words), strict=True))
        return found

    async def _verb(self, verb: str, *arguments: object) -> Any:
        return await self._call(*self._broker.command(verb, *arguments))

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)


def _letter(job_id: str, died: float, fields: Mapping[str, str]) -> DeadLetter:
    return DeadLetter(
        id=job_id,
        model=fields.get("model", ""),
        app=fields.get("app", ""),
        priority=int(fields.get("priority") or 0),
        submitted=round(float(fields.get("born") or fields.get("submitted") or 0) / 1000, 3),
        died=round(died, 3),
        crashes=int(fields.get("crashes") or 0),
        attempts=attempts(fields),
    )


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
