"""The client's core: one pipelined connection to submit, one inbox for every answer. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.errors import ClientClosed, InvalidJob, NotAllowed, SollolError
from sollol_broker.explain_reader import Explainer
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.link import LinkConfig
from sollol_broker.live_log import LiveLog
from sollol_broker.names import check_name
from sollol_broker.operations import Operations
from sollol_broker.registry import Registry
from sollol_broker.url import DEFAULT_URL, BrokerUrl, parse
from sollol_broker.words import Durability, Entry, JobState

from .cache import AnswerCache
from .cache_key import CacheSettings
from .follow import Follower, entry_order
from .following import Following, Watcher
from .lookout import DEPART_MS, Lookout
from .receiving import Receiver
from .request import Request
from .sending import SETTLE_SECONDS, Sender
from .shared_answers import begin_generation, drop_pointers
from .sharing import Sharing
from .tasks import Tasks

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """Submits jobs and hands each answer to whoever waits for it.

    Args:
        url: the fabric's Redis.
        app: the application's name, as the fabric shows it.
        answers: kept for equal requests.
        live_log: share of its info lines in the fabric's live log; None = it writes nothing there.

    Attributes:
        replies: who hears of a call to a worker, by the call's id.
        leaving: what has to be let go before the connection is: called when the session closes.
        live: what it says there.
    """

    url: BrokerUrl
    app: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: LinkConfig | None = None
    answers: AnswerCache | None = None
    live_log: float | None = None
    inbox_name: str = field(default_factory=lambda: f"c-{secrets.token_hex(8)}")
    broker: Broker = field(init=False)
    registry: Registry = field(init=False)
    operations: Operations = field(init=False)
    explainer: Explainer = field(init=False)
    lookout: Lookout = field(init=False)
    live: LiveLog = field(init=False)
    replies: dict[str, Callable[[EntryFields], None]] = field(default_factory=dict)
    leaving: set[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=set)
    _outbox: deque[Following] = field(default_factory=deque)
    _tasks: Tasks = field(default_factory=Tasks)
    _answers: AnswerCache = field(init=False)
    _inbox: Inbox = field(init=False)
    _receiver: Receiver = field(init=False)
    _sharing: Sharing = field(init=False)
    _sender: Sender = field(init=False)
    # Why we have no inbox.
    _looks_on: NotAllowed | None = None
    _started: bool = False
    _starting: bool = False
    _closed: bool = False

    def __post_init__(self) -> None:
        check_name(self.app, "app")
        self._answers = self.answers or AnswerCache(self.app, CacheSettings(enabled=False))
        self.broker = Broker(self.url, name=f"sollol-client-{self.inbox_name}", config=self.config)
        self.live = LiveLog(
            self.broker,
            source="client",
            process=self.inbox_name,
            node=platform.node().split(".")[0],
            app=self.app,
            sample=self.live_log,
        )
        self.registry = Registry(self.broker)
        self.operations = Operations(self.broker)
        self.explainer = Explainer(self.broker, self.registry)
        self._receiver = Receiver(
            self.broker, self._answers, on_unshared=lambda following: self._sharing.go_alone(following)
        )
        self._sharing = Sharing(
            self.broker,
            self._receiver,
            self._answers,
            self._tasks,
            send=lambda following: self._sender.send_slowly(following),
        )
        self._sender = Sender(
            self.broker,
            self.registry,
            self._receiver,
            self._sharing,
            self._tasks,
            app=self.app,
            live=self.live,
        )
        self._inbox = Inbox(self.broker, self.inbox_name, on_entry=self._on_inbox_entry)
        self.lookout = Lookout(
            self.broker,
            self.registry,
            self._receiver,
            self._sharing,
            self._sender,
            self._answers,
            inbox=self._inbox,
            inbox_name=self.inbox_name,
            app=self.app,
            metadata=self.metadata,
            tasks=self._tasks,
        )

    async def start(self) -> None:
        """Connect and open the inbox.

        A user who may only look on, such as the dashboard's, gets no inbox; what it submits or follows ends with the
        reason.

        Raises:
            BrokerUnavailable: within the connect timeout.
        """
        if self._started:
            return
        try:
            await self.broker.open()
            self._looks_on = await self._may_not_attend()
        except BaseException:
            await self.broker.close()
            raise
        self._started = True
        if self._looks_on is None:
            self._inbox.start()
            self.lookout.start()
            self.live.start()
            self.live.capture()
        self.flush()

    async def close(self) -> None:
        """Leave. Jobs go on; whoever still waits here gets ClientClosed."""
        if self._closed:
            return
        if self._started:
            self.flush()
        await asyncio.gather(*(leave() for leave in list(self.leaving)), return_exceptions=True)
        await self._sender.settle()
        self._closed = self._sharing.is_closed = True
        self.flush()  # ends what has never left
        await self._inbox.stop()
        await self._receiver.streams.stop()
        await self.lookout.stop()
        await self._tasks.stop()
        for following in self._receiver.followings.all():
            text = f"the client was closed; job {following.job_id} goes on: attach() finds it"
            self._receiver.end(following, ClientClosed(text))
        if self._started and self._looks_on is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await self.broker.drop_inbox(self.inbox_name)
                    await self.broker.depart(self.inbox_name, self.app, after_ms=DEPART_MS)
        await self.live.stop()
        await self.broker.close()

    def submit(self, request: Request, watcher: Watcher) -> bool:
        """Queue a job for sending; `flush` sends. Its end, or its refusal, reaches the watcher.

        The one method that any thread may call.

        Returns:
            Whether there is something to send: no, where its answer is kept here and the watcher has it by now.
        """
        following = Following(Follower(request.job_id), watcher, request)
        if self._sharing.is_answered_here(following, request.submission.cache_key):
            return False
        self._outbox.append(following)
        return True

    def flush(self) -> None:
        """Send what is queued, all in one go; must run in the event loop."""
        if not self._started and not self._closed:
            if not self._starting:
                self._starting = True
                self._tasks.own(self._start_late())
            return
        while self._outbox:  # one by one: other threads go on adding
            following = self._outbox.popleft()
            if self._closed:
                self._receiver.end(following, ClientClosed("the client is closed"))
            elif self._looks_on is not None:
                self._receiver.end(following, self._looks_on)
            else:
                self._sender.send(following)

    def attach(self, job_id: str, watcher: Watcher, after: str | None = None) -> None:
        """Follow a job that this session did not submit; its end reaches the watcher, and what comes behind `after`."""
        following = Following(Follower(job_id, after=entry_order(after) if after else None), watcher)
        self._receiver.follow(following)
        if self._looks_on is not None:
            self._receiver.end(following, self._looks_on)
        else:
            self._tasks.own(self._receiver.attach(following))

    async def cancel(self, job_id: str) -> str:
        """Cancel a job: "cancelled", the state it had ended in before, or "unknown".

        Who waits here for the answer to somebody else's request stops waiting, and that one's job goes on.
        """
        self.flush()
        followings = self._receiver.followings
        # A cancel that overtakes its job would find nothing, and the job would run.
        while sending := [each.sending for each in followings.of(job_id) if each.sending]:
            await asyncio.wait(sending)
        if sharers := followings.sharers(job_id):
            for each in sharers:
                self._receiver.end_as(each, JobState.CANCELLED)
            return JobState.CANCELLED.value
        word = await self.broker.cancel(job_id)
        here = followings.of(job_id)
        if word == "unknown" and any(each.request is not None for each in here):
            word = JobState.CANCELLED.value  # Redis has lost it, and nobody may send it again
        if word == JobState.CANCELLED:
            for each in here:
                self._receiver.end_as(each, JobState.CANCELLED)
        return word

    def cancel_soon(self, job_id: str) -> None:
        """Cancel a job without waiting; `close` lets the cancel arrive."""
        self._sender.await_arrival(asyncio.ensure_future(self._cancel_quietly(job_id)))

    async def invalidate_cache(self, model_key: str) -> set[str]:
        """Drop a model's answers, here and in Redis; other processes hear of it within 20 s. Gives their keys."""
        dropped = {self.broker.seal.blind(key) for key in self._answers.keys_of(model_key)}
        generation = await begin_generation(self.broker, model_key)
        self._answers.note_generation(model_key, generation)
        return dropped | await drop_pointers(self.broker, model_key)

    async def clear_cache(self) -> None:
        """Drop all answers of this cache's scope; other processes hear of it within 20 s."""
        self._answers.clear()
        name = self._answers.scope_field
        self._answers.note_generation(name, await begin_generation(self.broker, name))

    def _on_inbox_entry(self, entry: EntryFields) -> None:
        if entry[b"t"] == Entry.REPLY.encode():
            on_reply = self.replies.get(entry[b"o"].decode())
            if on_reply is not None:
                on_reply(entry)
        else:
            self._receiver.on_inbox_entry(entry)

    async def _may_not_attend(self) -> NotAllowed | None:
        """Open the inbox; why that is forbidden, to a user who may look on."""
        try:
            await self.lookout.attend()
        except NotAllowed as error:
            await self.registry.workers()  # who may not even do this has no business here
            return error
        return None

    async def _start_late(self) -> None:
        """Start because somebody submitted without opening the client first."""
        try:
            await self.start()
        except SollolError as error:
            while self._outbox:
                self._receiver.end(self._outbox.popleft(), error)
        finally:
            self._starting = False

    async def _cancel_quietly(self, job_id: str) -> None:
        try:
            await self.cancel(job_id)
        except SollolError as error:
            log.warning("job %s: it could not be cancelled: %s", job_id, error)


def broker_url(url: str | None, durability: str | None) -> BrokerUrl:
    """The fabric that a client means; what it does not say comes from the environment.

    Raises:
        BrokerUnavailable: the URL makes no sense.
        InvalidJob: the durability is none.
    """
    parsed = parse(url or os.environ.get("SOLLOL_REDIS_URL") or DEFAULT_URL, environ=os.environ)
    if durability is None:
        return parsed
    try:
        return replace(parsed, durability=Durability(durability))
    except ValueError:
        raise InvalidJob(f"durability is one of {', '.join(Durability)}", field="durability") from None
