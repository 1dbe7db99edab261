"""What comes back: each entry goes to all who wait for its job, and the first end of each is its last word."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from sollol_broker.broker import Broker
from sollol_broker.errors import JobDead, JobLost, SollolError
from sollol_broker.inbox import EntryFields
from sollol_broker.words import Entry, JobState

from .answer import Answer
from .cache import AnswerCache
from .following import Following, Followings
from .streams import StreamReader

# A job without news is looked up after this long, then after twice that, up to a minute.
FIRST_LOOK_SECONDS = 5.0
# Time for the workers to end a job at its deadline before its client does.
DEADLINE_GRACE_SECONDS = 5.0


class Receiver:
    """Hands entries to those who wait, and ends them.

    Args:
        answers: kept for equal requests.
        on_unshared: called with one that shared a job which has ended without an answer, or is lost.

    Attributes:
        followings: who waits for which job.
        streams: reads the events of jobs whose entries do not reach our inbox, or passed it by.
    """

    def __init__(
        self, broker: Broker, answers: AnswerCache, *, on_unshared: Callable[[Following], None]
    ) -> None:
        self.followings = Followings()
        self.streams = StreamReader(broker, on_entry=self.on_job_entry)
        self._broker = broker
        self._answers = answers
        self._on_unshared = on_unshared

    def follow(self, following: Following) -> None:
        """It waits for its job from now on."""
        now = time.monotonic()
        following.look_after = FIRST_LOOK_SECONDS
        following.look_at = now + following.look_after
        if following.request is not None and following.request.submission.deadline_ms:
            following.deadline_at = (
                now + following.request.submission.deadline_ms / 1000 + DEADLINE_GRACE_SECONDS
            )
        self.followings.add(following)

    def unfollow(self, following: Following) -> None:
        """It waits no more."""
        if self.followings.remove(following):
            self.streams.forget(following.job_id)

    async def attach(self, following: Following) -> None:
        """Read its job's events from the beginning, or end it with JobLost."""
        job_id = following.job_id
        try:
            state = await self._broker.link.call("HGET", self._broker.keys.job(job_id), "state")
        except SollolError as error:
            self.end(following, error)
            return
        if state is None and following.shares:
            self._on_unshared(following)
            return
        if state is None:
            self.end(
                following,
                JobLost(f"job {job_id} is not known here: its result has expired, or the id is wrong"),
            )
            return
        following.watcher.on_accepted()
        if following.follower.outcome is None:
            self.streams.follow(job_id)

    def on_inbox_entry(self, entry: EntryFields) -> None:
        """Take what came into our inbox."""
        job_id = entry.get(b"j")
        for following in self.followings.of(job_id.decode()) if job_id is not None else ():
            if (
                not following.follower.is_resuming
            ):  # it must meet the job's entries in order, from the first one
                self.take(following, entry)

    def on_job_entry(self, job_id: str, entry: EntryFields) -> None:
        """Take an entry of a job."""
        for following in self.followings.of(job_id):
            self.take(following, entry)

    def take(self, following: Following, entry: EntryFields) -> None:
        """Give an entry to one who waits."""
        try:
            entry = self._broker.readable(following.job_id, entry)
            piece = following.follower.take(entry)
        except SollolError as error:
            self.end(following, error)
            return
        if piece is not None:
            following.watcher.on_piece(piece)
        if following.follower.fence != following.watcher.attempt:
            following.watcher.on_start(following.follower.node, following.follower.fence)
        if following.follower.note != following.watcher.note:
            following.watcher.on_note(following.follower.note)
        if following.follower.broken is not None and not following.is_broken:
            following.is_broken = True
            following.watcher.on_break(following.follower.broken)
        if following.follower.lacks_pieces and not following.catching_up:
            self.streams.follow(following.job_id)
        following.catching_up = following.follower.lacks_pieces
        outcome = following.follower.outcome
        if outcome is None:
            return
        if isinstance(outcome, Answer):
            self._keep_answer(following, entry[b"d"])
        elif following.shares and not isinstance(outcome, JobDead):  # what kills workers is not tried again
            self._on_unshared(following)
            return
        self.ended(following)

    def end(self, following: Following, error: SollolError) -> None:
        """End it from our side, unless it has ended."""
        if following.follower.outcome is None:
            following.follower.end(error)
            self.ended(following)

    def end_as(self, following: Following, state: JobState) -> None:
        """End it here as if Redis had said so."""
        following.follower.take(end_entry(state))
        self.ended(following)

    def ended(self, following: Following) -> None:
        """Tell who waits that it is over."""
        self.unfollow(following)
        following.watcher.on_end(following.follower)

    def _keep_answer(self, following: Following, data: bytes) -> None:
        if following.shares:
            say_cached(following, "shared")
        request = following.request
        if request is not None and request.submission.cache_key:
            submission = request.submission
            self._answers.keep(
                submission.cache_key, request.model, following.job_id, data, app=submission.app
            )


def end_entry(state: JobState, data: bytes = b"") -> EntryFields:
    """A terminal entry as Redis would write it."""
    return {b"t": Entry.END.encode(), b"x": state.encode(), b"f": b"0", b"d": data}


def say_cached(following: Following, where: str) -> None:
    """Note in its answer from which cache it comes."""
    answer = following.follower.outcome
    if isinstance(answer, Answer):
        answer.routing = replace(answer.routing, cached=where)


def left_seconds(following: Following) -> float:
    """Until its own deadline; inf where it has none."""
    if following.deadline_at == math.inf:
        return math.inf
    return following.deadline_at - DEADLINE_GRACE_SECONDS - time.monotonic()
