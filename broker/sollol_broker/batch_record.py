"""What is known of a batch: its record as a view, its progress, and the chunks it is made of. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType

from .errors import InvalidJob
from .told import number, whole
from .words import BatchState, JobKind, JobState

BatchId = NewType("BatchId", str)
# "~" parts the id from the rest in the ids of its jobs.
_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """So many items from `start` on, as one job."""

    start: int
    count: int

    @property
    def end(self) -> int:
        """The index behind its last item."""
        return self.start + self.count

    def halves(self) -> tuple[Chunk, Chunk]:
        """It in two, the first not the smaller one; it must have two items."""
        first = (self.count + 1) // 2
        return Chunk(self.start, first), Chunk(self.start + first, self.count - first)


@dataclass(frozen=True, slots=True)
class EndedChunk:
    """A chunk that has ended; only one of a single item can have failed.

    Attributes:
        sent: the chunk that its job was sent with: a slow worker answers the first of its items, and leaves the rest.
    """

    chunk: Chunk
    state: JobState
    sent: Chunk

    @classmethod
    def parse(cls, text: bytes) -> EndedChunk:
        """What `settle_chunk` wrote."""
        start, count, state, sent = text.decode().split(":")
        return cls(Chunk(int(start), int(count)), JobState(state), Chunk(int(start), int(sent)))

    def __bytes__(self) -> bytes:
        return f"{self.chunk.start}:{self.chunk.count}:{self.state.value}:{self.sent.count}".encode()


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch as its record tells.

    Attributes:
        state: PENDING until its first chunk goes out. why: of a batch that FAILED.
        total: items, once all are known; None while they are still fed. fed: items that came so far.
        completed, failed: items with an answer, and with an error.
        created_at, started_at, ended_at: seconds since 1970 by Redis' clock; None = not yet.
        keep: whether results stay after they are read. ttl_seconds: for which the batch stays after its end.
        in_bytes, out_bytes: in Redis, of items without an answer, and of results.
        next_index: of the first item that is in no chunk yet.
        driver: who moves it on; "" = nobody.
        metadata: the caller's own; empty where it cannot be decrypted here.
    """

    id: str
    state: BatchState
    kind: JobKind
    model: str
    app: str
    priority: int
    total: int | None
    fed: int
    completed: int
    failed: int
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    why: str = ""
    keep: bool = True
    on_error: str = "collect"
    ttl_seconds: float = 3600.0
    in_bytes: int = 0
    out_bytes: int = 0
    next_index: int = 0
    tag: str = ""
    driver: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Items that have ended, either way."""
        return self.completed + self.failed

    @property
    def percent(self) -> float | None:
        """Of all items, how many have ended; None while it is not known how many there are."""
        if self.total is None:
            return None
        return 100.0 * self.done / self.total if self.total else 100.0

    @property
    def duration_seconds(self) -> float | None:
        """From its first chunk to its end; None before both."""
        if self.started_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.started_at

    def job_id(self, chunk: Chunk) -> str:
        """The id of a chunk's job: the same whoever sends it."""
        return f"{self.id}~{self.tag}~{chunk.start}~{chunk.count}"

    @property
    def seal_id(self) -> str:
        """What items and template are sealed under."""
        return f"{self.id}~{self.tag}"


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        total: None while items are still fed. percent: None likewise.
        rate: items a second, lately. eta_s: seconds that are left at that rate; None = cannot be said.
    """

    total: int | None
    completed: int
    failed: int
    percent: float | None
    rate: float
    eta_s: float | None


def progress_of(view: BatchView, rate: float) -> BatchProgress:
    """The progress of a batch that goes on at so many items a second."""
    left = None if view.total is None else view.total - view.done
    if view.state.is_terminal:
        eta: float | None = 0.0
    else:
        eta = left / rate if left is not None and rate > 0 else None
    return BatchProgress(view.total, view.completed, view.failed, view.percent, rate, eta)


def batch_of(job_id: str) -> str:
    """The batch that a job is of; "" = of none."""
    batch_id, tilde, _ = job_id.partition("~")
    return batch_id if tilde else ""


def check_batch_id(batch_id: str) -> str:
    """Give `batch_id` back if it can be one.

    Raises:
        InvalidJob: it is not 1 to 100 of [A-Za-z0-9._-].
    """
    if not isinstance(batch_id, str) or not _ID.fullmatch(batch_id):
        raise InvalidJob("id: the id of a batch is 1 to 100 of A-Z a-z 0-9 . _ -", field="id")
    return batch_id


def view_of(batch_id: str, fields: Mapping[str, str], metadata: Mapping[str, Any] | None = None) -> BatchView:
    """The view of a record's fields.

    Raises:
        KeyError, ValueError: it is damaged.
    """
    fed = whole(fields["fed"])
    return BatchView(
        id=batch_id,
        state=BatchState(fields["state"]),
        kind=JobKind(fields["kind"]),
        model=fields["model"],
        app=fields["app"],
        priority=whole(fields["priority"]),
        total=fed if fields["closed"] == "1" else None,
        fed=fed,
        completed=whole(fields["completed"]),
        failed=whole(fields["failed"]),
        created_at=number(fields["created"]) / 1000,
        started_at=_moment(fields, "started"),
        ended_at=_moment(fields, "ended"),
        why=fields["why"],
        keep=fields["keep"] == "1",
        on_error=fields["on_error"],
        ttl_seconds=number(fields["ttl"]) / 1000,
        in_bytes=whole(fields["in_bytes"]),
        out_bytes=whole(fields["out_bytes"]),
        next_index=whole(fields["next"]),
        tag=fields["tag"],
        driver=fields["driver"],
        metadata=dict(metadata or {}),
    )


def _moment(fields: Mapping[str, str], name: str) -> float | None:
    return number(fields[name]) / 1000 if name in fields else None
