"""Who waits for which job in this process."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.errors import SollolError
from sollol_broker.quota_left import QuotaLeft

from .answer import Delta
from .follow import Follower
from .request import Request


class Watcher:
    """Who waits for a job; subclassed by the sync and the async job.

    Attributes:
        note: what is being done for the job while it waits, such as "forming group g-1a2b3c: loading 42 %, ~35 s";
            "" = nothing in particular.
        node, attempt: where it runs, and for which time a worker has begun with it; "" and 0 = none has.
    """

    note: str = ""
    node: str = ""
    attempt: int = 0

    def on_note(self, note: str) -> None:
        """Something is being done for the job."""
        self.note = note

    def on_start(self, node: str, attempt: int) -> None:
        """A worker has begun with it."""
        self.node, self.attempt = node, attempt

    def on_quota(self, left: QuotaLeft) -> None:
        """What is left of the application's quota now that it has been handed in; called before `on_accepted`."""

    def on_accepted(self) -> None:
        """The fabric has the job; called at least once before its end, unless it was refused."""

    def on_id(self, job_id: str) -> None:
        """The job goes on under another id: that of an equal request, or its own after all."""

    def on_piece(self, piece: Delta) -> None:
        """New text has come."""

    def on_break(self, error: SollolError) -> None:
        """The stream cannot go on, though the job does."""

    def on_end(self, follower: Follower) -> None:
        """The job has ended; called once."""


@dataclass(slots=True, eq=False)
class Following:
    """A job that somebody here waits for. Several may wait for the same one, each with what it has seen.

    Attributes:
        sending: the submission while it is on its way.
        catching_up: its own events are read, for pieces that the inbox did not get.
        is_broken: who waits knows that the stream is broken.
        shares: it waits for the answer to an equal request, whose job is not ours.
        timer: ends it at its own deadline while it shares.
    """

    follower: Follower
    watcher: Watcher
    request: Request | None = None
    sending: asyncio.Future[Any] | None = None
    catching_up: bool = False
    is_broken: bool = False
    shares: bool = False
    timer: asyncio.TimerHandle | None = None
    seen_news: int = 0
    deadline_at: float = math.inf
    look_at: float = 0.0
    look_after: float = 0.0

    @property
    def job_id(self) -> str:
        """The job whose answer it gets."""
        return self.follower.job_id

    @property
    def sent_id(self) -> str:
        """The id under which it was submitted."""
        return self.request.job_id if self.request is not None else self.follower.job_id


@dataclass(slots=True)
class Followings:
    """All who wait, by the job they wait for, and those who share by the id under which they were submitted."""

    _by_job: dict[str, list[Following]] = field(default_factory=dict)
    _sharing: dict[str, list[Following]] = field(default_factory=dict)

    def add(self, following: Following) -> None:
        """It waits for its job from now on."""
        self._by_job.setdefault(following.job_id, []).append(following)
        if following.shares:
            self._sharing.setdefault(following.sent_id, []).append(following)

    def remove(self, following: Following) -> bool:
        """It waits no more; whether nobody else here waits for that job. Safe to repeat."""
        if following.shares:
            _take_out(self._sharing, following.sent_id, following)
            following.shares = False
        if following.timer is not None:
            following.timer.cancel()
            following.timer = None
        return _take_out(self._by_job, following.job_id, following)

    def of(self, job_id: str) -> list[Following]:
        """Who waits for this job, shared or not."""
        return list(self._by_job.get(job_id, ()))

    def sharers(self, job_id: str) -> list[Following]:
        """Who was submitted under this id and shares; else all who wait for this job, if all of them share."""
        here = self._sharing.get(job_id) or self._by_job.get(job_id, [])
        return list(here) if all(each.shares for each in here) else []

    def all(self) -> list[Following]:
        """Everybody."""
        return [following for same in self._by_job.values() for following in same]


def _take_out(index: dict[str, list[Following]], name: str, following: Following) -> bool:
    """Whether nobody is left under this name."""
    same = index.get(name, [])
    if following in same:
        same.remove(following)
    if same:
        return False
    index.pop(name, None)
    return True
