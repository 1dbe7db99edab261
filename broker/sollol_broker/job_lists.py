"""Lists of jobs, page by page, however many there are: running, waiting, waiting out a backoff, ended, dead.

A list is a row of segments, such as the queues one after the other, each of known length. A page begins at an offset
into that row; with a filter it ends where enough was found, or where enough was looked at.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .broker import Broker
from .errors import InvalidJob
from .names import canonical_model, key_part
from .registry import JobView, Registry
from .told import text

STATES = ("running", "waiting", "delayed", "ended", "dead")
# Records that one page may cost where a filter finds little.
_MOST_LOOKED = 300
_AT_ONCE = 50
_MOST_KEPT = 4_000
# How long a record is good for. Who waits or runs may change; who has ended does not.
_KEPT_SECONDS = 3.0
_ENDED_KEPT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs are asked for.

    Attributes:
        state: one of STATES; "" = all of them, in that order. model, app, node: "" = any.
        offset: into the whole list, as the page before told it.
    """

    state: str = ""
    model: str = ""
    app: str = ""
    node: str = ""
    offset: int = 0
    count: int = 50

    def __post_init__(self) -> None:
        if self.state and self.state not in STATES:
            raise InvalidJob(
                f"state: one of {', '.join(STATES)} is needed, got {self.state!r}", field="state"
            )
        if not 0 <= self.offset < 2**31 or not 1 <= self.count <= 200:
            raise InvalidJob("a page begins at 0 or later, and has 1 to 200 jobs", field="offset")

    def wants(self, job: JobView) -> bool:
        """Whether a job is one of them."""
        return (
            self.model in ("", job.model)
            and self.app in ("", job.app)
            and self.node in ("", job.node)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page.

    Attributes:
        jobs: with what the list says of each ("waiting", …). length: of the list, before any filter.
        next_offset: where the next page begins; None = this is the last one. looked: records that were looked at.
    """

    jobs: tuple[tuple[str, JobView], ...]
    length: int
    next_offset: int | None
    looked: int


@dataclass(frozen=True, slots=True)
class _Segment:
    state: str
    length: int
    command: tuple[object, ...]
    is_reverse: bool = False


class JobLists:
    """The lists of one fabric.

    Args:
        clock: seconds, for how long records are kept.
    """

    def __init__(self, broker: Broker, *, clock: Callable[[], float]) -> None:
        self._broker = broker
        self._registry = Registry(broker)
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, JobView]] = OrderedDict()

    async def page(self, wanted: Wanted, queues: Sequence[str]) -> JobPage:
        """One page.

        Args:
            queues: models that have jobs waiting, in the order in which their queues are told.

        Raises:
            InvalidJob: the model cannot be one. BrokerUnavailable, NotAllowed
        """
        if wanted.model:
            wanted = replace(wanted, model=canonical_model(wanted.model))
        segments = await self._segments(wanted, queues)
        length = sum(segment.length for segment in segments)
        jobs: list[tuple[str, JobView]] = []
        at, looked = wanted.offset, 0
        while len(jobs) < wanted.count and looked < _MOST_LOOKED and at < length:
            rows = await self._rows(segments, at, min(_AT_ONCE, wanted.count))
            if not rows:
                break
            for state, job in rows:
                at, looked = at + 1, looked + 1
                if job is not None and wanted.wants(job):
                    jobs.append((state, job))
                    if len(jobs) == wanted.count:
                        break
        return JobPage(tuple(jobs), length, at if at < length else None, looked)

    async def _segments(self, wanted: Wanted, queues: Sequence[str]) -> list[_Segment]:
        keys = self._broker.keys
        found = []
        for state in (wanted.state,) if wanted.state else STATES:
            if state == "waiting":
                lines = [
                    keys.queue(key_part(model)) for model in ([wanted.model] if wanted.model else queues)
                ]
                lengths = await asyncio.gather(*(self._call("ZCARD", line) for line in lines))
                found += [
                    _Segment(state, length, ("ZRANGE", line))
                    for line, length in zip(lines, lengths, strict=True)
                ]
            elif state == "ended":
                for key in (keys.ended, keys.ended_chunks):
                    found.append(_Segment(state, await self._call("LLEN", key), ("LRANGE", key)))
            else:
                key = {"running": keys.leases, "delayed": keys.delayed, "dead": keys.dead}[state]
                length = await self._call("ZCARD", key)
                found.append(_Segment(state, length, ("ZRANGE", key), is_reverse=state == "dead"))
        return found

    async def _rows(
        self, segments: Sequence[_Segment], at: int, count: int
    ) -> list[tuple[str, JobView | None]]:
        """The jobs from a place on; None = its record has expired."""
        members: list[tuple[str, str]] = []
        for segment in segments:
            if at >= segment.length:
                at -= segment.length
                continue
            last = min(segment.length, at + count - len(members)) - 1
            order = ("REV",) if segment.is_reverse else ()
            for each in await self._call(*segment.command, at, last, *order):
                members.append((segment.state, text(each.split(b"|")[0])))
            if len(members) >= count:
                break
            at = 0
        jobs = await self._jobs(members)
        return [(state, jobs.get(job_id)) for state, job_id in members]

    async def _jobs(self, members: Sequence[tuple[str, str]]) -> dict[str, JobView]:
        now, ids = self._clock(), [job_id for _, job_id in members]
        missing = [job_id for state, job_id in members if not self._is_good(state, job_id, now)]
        for job in await self._registry.jobs_of(missing):
            self._kept[job.id] = (now, job)
            self._kept.move_to_end(job.id)
        found = {each: self._kept[each][1] for each in ids if each in self._kept}
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return found

    def _is_good(self, state: str, job_id: str, now: float) -> bool:
        kept = self._kept.get(job_id)
        if kept is None:
            return False
        at, job = kept
        if state in ("ended", "dead") and not job.state.is_terminal:
            return False  # it has ended since
        return now - at < (_ENDED_KEPT_SECONDS if job.state.is_terminal else _KEPT_SECONDS)

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)
