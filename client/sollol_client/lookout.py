"""Keeps watch: says that the client lives, finds answers that passed it by, sends again what Redis has forgotten."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from sollol_broker.app_metadata import metadata_text
from sollol_broker.broker import Broker
from sollol_broker.inbox import Inbox
from sollol_broker.periodic import Periodic
from sollol_broker.registry import Registry
from sollol_broker.version import VERSION

from .cache import AnswerCache
from .following import Following
from .receiving import Receiver
from .sending import Sender
from .shared_answers import read_generations
from .sharing import Sharing
from .tasks import Tasks

log = logging.getLogger(__name__)

# The inbox outlives three missed signs of life; after that, answers wait in the jobs' own events.
_ATTEND_SECONDS = 20.0
_INBOX_TTL_MS = 60_000
_APP_TTL_MS = 120_000
# An application whose client leaves stays for the sign of life of another one, if there is one.
DEPART_MS = 25_000
_LOOK_SECONDS = 2.5
_LONGEST_LOOK_SECONDS = 60.0


class Lookout:
    """The client's signs of life, and its looks at jobs without news.

    Args:
        inbox, inbox_name: ours. metadata: shown beside the app's name.
        tasks: own what a look begins.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        receiver: Receiver,
        sharing: Sharing,
        sender: Sender,
        answers: AnswerCache,
        *,
        inbox: Inbox,
        inbox_name: str,
        app: str,
        metadata: Mapping[str, Any],
        tasks: Tasks,
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._receiver = receiver
        self._sharing = sharing
        self._sender = sender
        self._answers = answers
        self._inbox = inbox
        self._inbox_name = inbox_name
        self._app = app
        self._metadata = metadata
        self._tasks = tasks
        self._connections = 1
        self._attending = Periodic(self.attend, name="sign of life", seconds=_ATTEND_SECONDS)
        self._looking = Periodic(self._look, name="looking after jobs", seconds=_LOOK_SECONDS)

    def start(self) -> None:
        """Begin to keep watch."""
        self._attending.start()
        self._looking.start()

    async def stop(self) -> None:
        """Keep watch no more."""
        await asyncio.gather(self._attending.stop(), self._looking.stop())

    async def attend(self) -> None:
        """Say that the client lives, and hear which cached answers no longer count.

        Raises:
            BrokerUnavailable
        """
        fields = {
            "version": VERSION,
            "host": platform.node(),
            "pid": str(os.getpid()),
            "metadata": metadata_text(self._metadata),
        }
        is_new = await self._broker.attend(
            self._inbox_name,
            self._app,
            inbox_ttl_ms=_INBOX_TTL_MS,
            app_fields=fields,
            app_ttl_ms=_APP_TTL_MS,
        )
        self._answers.note_generations(await read_generations(self._broker))
        if is_new:
            self._inbox.rewind()
            for following in self._receiver.followings.all():
                following.look_at = 0.0  # its answer may have come while there was no inbox

    async def _look(self) -> None:
        now = time.monotonic()
        followings = self._receiver.followings.all()
        if any(each.deadline_at < now for each in followings):
            # Workers end jobs at their deadline; where there is no worker, whoever waits does.
            await self._broker.reap()
        followings = self._receiver.followings.all()
        if self._broker.link.connections != self._connections:
            # Another server, or the same with an older copy: what it knows of our jobs decides, for all of them.
            self._connections = self._broker.link.connections
            silent = [each for each in followings if each.sending is None]
        else:
            silent = [each for each in followings if _is_silent(each, now)]
        if not silent:
            return
        standings = await self._registry.standings([each.job_id for each in silent])
        if None in standings:
            await self.attend()  # a Redis that has lost jobs has lost our inbox, too, and the workers
            self._sender.redis_was_away()
        for following, standing in zip(silent, standings, strict=True):
            if following.follower.outcome is not None or following.sending is not None:
                continue
            if standing is None and following.shares:
                self._sharing.go_alone(following)
            elif standing is None and following.request is not None:
                log.warning("job %s: Redis has lost it, sending it again", following.job_id)
                following.follower.restart()
                self._sender.send_slowly(following)
            elif standing is None or standing[0].is_terminal:
                self._tasks.own(self._receiver.attach(following))
            elif standing[1] < following.follower.fence:
                log.warning("job %s: Redis has lost its last attempt, following it anew", following.job_id)
                following.follower.restart()
                self._receiver.streams.follow(following.job_id)


def _is_silent(following: Following, now: float) -> bool:
    """Whether it is time for a look and no news has come since the last; sets the time of the next."""
    if following.look_at > now or following.sending is not None:
        return False
    is_silent = following.seen_news == following.follower.news
    following.seen_news = following.follower.news
    following.look_after = min(following.look_after * 2, _LONGEST_LOOK_SECONDS)
    following.look_at = now + following.look_after
    return is_silent
