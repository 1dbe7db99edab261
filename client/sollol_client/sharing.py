"""Equal requests share one answer: kept here, kept in Redis, or still being made."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.words import JobState

from .cache import AnswerCache
from .following import Following
from .receiving import Receiver, end_entry, left_seconds, say_cached
from .shared_answers import read_end
from .tasks import Tasks


class Sharing:
    """Lets a job wait for the answer to an equal request, and go its own way where that one gets none.

    Args:
        send: submits a job for itself alone.

    Attributes:
        is_closed: the client has left: nothing is submitted any more.
    """

    def __init__(
        self,
        broker: Broker,
        receiver: Receiver,
        answers: AnswerCache,
        tasks: Tasks,
        *,
        send: Callable[[Following], None],
    ) -> None:
        self.is_closed = False
        self._broker = broker
        self._receiver = receiver
        self._answers = answers
        self._tasks = tasks
        self._send = send

    def is_answered_here(self, following: Following, key: str) -> bool:
        """Whether its answer was kept in this process; then it has it now. Any thread may call."""
        kept = self._answers.find(key) if key and not self.is_closed else None
        if kept is None:
            return False
        following.follower.restart(kept.job_id)
        following.watcher.on_id(kept.job_id)
        following.follower.take(end_entry(JobState.DONE, kept.data))
        say_cached(following, "local")
        following.watcher.on_end(following.follower)
        return True

    def share(self, following: Following, job_id: str, *, is_done: bool) -> None:
        """Wait for the answer to an equal request, or fetch it."""
        if following.follower.outcome is not None:
            return
        self._receiver.unfollow(following)
        following.shares = True
        following.follower.restart(job_id)
        following.watcher.on_id(job_id)
        self._answers.count_shared()
        self._receiver.followings.add(following)
        if (left := left_seconds(following)) < math.inf:
            loop = asyncio.get_running_loop()
            following.timer = loop.call_later(
                max(0.0, left), self._receiver.end_as, following, JobState.EXPIRED
            )
        if is_done:
            self._tasks.own(self._fetch_end(following))
        else:
            self._receiver.streams.follow(job_id)

    def go_alone(self, following: Following) -> None:
        """What it shared has ended without an answer: submit it after all, for itself alone."""
        assert following.request is not None  # noqa: S101  # only submitted jobs share
        if self.is_closed:
            self._receiver.ended(following)
            return
        request, left = following.request, left_seconds(following)
        deadline_ms = max(1, round(left * 1000)) if left < math.inf else 0
        self._receiver.unfollow(following)
        alone = replace(request.submission, cache_key="", deadline_ms=deadline_ms)
        following.request = replace(request, submission=alone)
        following.follower.restart(request.job_id)
        following.watcher.on_id(request.job_id)
        self._receiver.follow(following)
        self._send(following)

    async def _fetch_end(self, following: Following) -> None:
        try:
            entry = await read_end(self._broker, following.job_id)
        except SollolError as error:
            self._receiver.end(following, error)
            return
        if following.follower.outcome is not None:
            return
        if entry is None:
            self.go_alone(following)  # it ran out in between
        else:
            self._receiver.take(following, entry)
