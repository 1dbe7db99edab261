"""The client's core: one pipelined connection to submit, one inbox for every answer. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.claim_rule import fits
from sollol_broker.errors import (
    ClientClosed,
    JobLost,
    NoNodeForModel,
    QueueFull,
    SollolError,
)
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.link import LinkConfig
from sollol_broker.names import check_name
from sollol_broker.registry import Registry
from sollol_broker.url import BrokerUrl
from sollol_broker.version import VERSION

from .answer import Delta
from .follow import Follower
from .request import Request
from .streams import StreamReader

log = logging.getLogger(__name__)

# The inbox outlives three missed signs of life; after that, answers wait in the jobs' own events.
_ATTEND_SECONDS = 20.0
_INBOX_TTL_MS = 60_000
_APP_TTL_MS = 120_000
# A job without news is looked up after this long, then after twice that, up to a minute.
_FIRST_LOOK_SECONDS = 5.0
_LONGEST_LOOK_SECONDS = 60.0


class Watcher:
    """Who waits for a job; subclassed by the sync and the async job."""

    def on_piece(self, piece: Delta) -> None:
        """New text has come."""

    def on_end(self, follower: Follower) -> None:
        """The job has ended; called once."""


@dataclass(slots=True)
class Following:
    """A job that somebody here waits for."""

    follower: Follower
    watcher: Watcher
    request: Request | None = None
    seen_news: int = 0
    look_at: float = 0.0
    look_after: float = _FIRST_LOOK_SECONDS


@dataclass(slots=True)
class Session:
    """Submits jobs and hands each answer to whoever waits for it.

    Args:
        url: the fabric's Redis.
        app: the application's name, as the fabric shows it.
    """

    url: BrokerUrl
    app: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: LinkConfig | None = None
    inbox_name: str = field(default_factory=lambda: f"c-{secrets.token_hex(8)}")
    broker: Broker = field(init=False)
    registry: Registry = field(init=False)
    _following: dict[str, Following] = field(default_factory=dict)
    _outbox: list[Following] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _inbox: Inbox = field(init=False)
    _streams: StreamReader = field(init=False)
    _started: bool = False
    _closed: bool = False

    def __post_init__(self) -> None:
        check_name(self.app, "app")
        self.broker = Broker(self.url, name=f"sollol-client-{self.inbox_name}", config=self.config)
        self.registry = Registry(self.broker)
        self._inbox = Inbox(self.broker, self.inbox_name, on_entry=self._on_inbox_entry)
        self._streams = StreamReader(self.broker, on_entry=self._on_job_entry)

    async def start(self) -> None:
        """Connect and open the inbox.

        Raises:
            BrokerUnavailable: within the connect timeout.
        """
        if self._started:
            return
        await self.broker.open()
        await self._attend()
        self._started = True
        self._inbox.start()
        self._own(self._keep_attending())
        self._own(self._look_after_jobs())
        self.flush()

    async def close(self) -> None:
        """Leave. Jobs go on; whoever still waits here gets ClientClosed."""
        if self._closed:
            return
        self._closed = True
        await self._inbox.stop()
        await self._streams.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for following in list(self._following.values()):
            job_id = following.follower.job_id
            self._end(following, ClientClosed(f"the client was closed; job {job_id} goes on: attach() finds it"))
        if self._started:
            await self.broker.drop_inbox(self.inbox_name)
        await self.broker.close()

    def submit(self, request: Request, watcher: Watcher) -> None:
        """Queue a job for sending; `flush` sends. Its end, or its refusal, reaches the watcher."""
        self._outbox.append(Following(Follower(request.job_id), watcher, request))

    def flush(self) -> None:
        """Send what is queued, all in one go; must run in the event loop."""
        if not self._started:
            return
        outbox, self._outbox = self._outbox, []
        wire = self.broker.link.ready()
        for following in outbox:
            if self._closed:
                self._end(following, ClientClosed("the client is closed"))
                continue
            self._follow(following)
            if wire is None or (following.request is not None and following.request.requires is not None):
                self._own(self._submit_slowly(following))
                continue
            reply = wire.send(*self._command(following))
            reply.add_done_callback(lambda reply, following=following: self._on_reply(following, reply))

    def attach(self, job_id: str, watcher: Watcher) -> None:
        """Follow a job that this session did not submit; its end reaches the watcher."""
        following = Following(Follower(job_id), watcher)
        self._follow(following)
        self._own(self._attach(following))

    async def cancel(self, job_id: str) -> str:
        """Cancel a job: "cancelled", the state it had ended in before, or "unknown"."""
        return await self.broker.cancel(job_id)

    # --- sending

    def _command(self, following: Following) -> tuple[object, ...]:
        assert following.request is not None  # noqa: S101  # only submitted jobs are sent
        return self.broker.command("submit", *following.request.submission.arguments())

    def _on_reply(self, following: Following, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled():
            return
        if reply.exception() is not None:
            self._own(self._submit_slowly(following))
        else:
            self._on_submitted(following, reply.result())

    async def _submit_slowly(self, following: Following) -> None:
        """Submit with patience: over reconnects, a missing function library, and a look at what fits."""
        assert following.request is not None  # noqa: S101
        try:
            await self._check_requirements(following.request)
            reply = await self.broker.submit(following.request.submission)
        except SollolError as error:
            self._end(following, error)
            return
        self._on_submitted(following, reply)

    async def _check_requirements(self, request: Request) -> None:
        if request.requires is None or request.submission.without_node:
            return
        nodes = await self.registry.nodes()
        for node in nodes:
            for worker in node.workers:
                vram = int(node.hardware.get("vram_total_mib", 0))
                serves = request.model in worker.models
                if serves and fits(request.requires, node=node.name, labels=worker.labels, vram_mib=vram):
                    return
        raise await self._no_node(request.model)

    def _on_submitted(self, following: Following, reply: list[Any]) -> None:
        word = reply[0]
        if word == b"queued":
            return
        if word == b"known":
            # Sent before, by us or by somebody with the same key: its answer may already lie in its events.
            self._own(self._attach(following))
        elif word == b"full":
            error = QueueFull(
                "Redis has too little memory left for new jobs: wait until some are done, or raise maxmemory",
                retry_after=int(reply[2]) / 1000,
            )
            self._end(following, error)
        else:
            self._own(self._refuse(following))

    async def _refuse(self, following: Following) -> None:
        assert following.request is not None  # noqa: S101
        try:
            error: SollolError = await self._no_node(following.request.model)
        except SollolError as unreachable:
            error = unreachable
        self._end(following, error)

    async def _no_node(self, model: str) -> NoNodeForModel:
        reasons = await self.registry.reasons(model)
        if not reasons:
            return NoNodeForModel(f"no worker is connected to {self.url}: start `sollol-worker --redis URL` on a node")
        told = "; ".join(f"{node}: {why}" for node, why in sorted(reasons.items()))
        return NoNodeForModel(f"no node serves {model} ({told})", reasons=reasons)

    # --- receiving

    def _follow(self, following: Following) -> None:
        following.look_at = time.monotonic() + following.look_after
        self._following[following.follower.job_id] = following

    def _on_inbox_entry(self, entry: EntryFields) -> None:
        job_id = entry.get(b"j")
        if job_id is not None:
            self._on_job_entry(job_id.decode(), entry)

    def _on_job_entry(self, job_id: str, entry: EntryFields) -> None:
        following = self._following.get(job_id)
        if following is None:
            return
        try:
            piece = following.follower.take(entry)
        except SollolError as error:
            self._end(following, error)
            return
        if piece is not None:
            following.watcher.on_piece(piece)
        if following.follower.outcome is not None:
            self._ended(following)

    def _end(self, following: Following, error: SollolError) -> None:
        following.follower.end(error)
        self._ended(following)

    def _ended(self, following: Following) -> None:
        job_id = following.follower.job_id
        if self._following.get(job_id) is following:
            del self._following[job_id]
        self._streams.forget(job_id)
        following.watcher.on_end(following.follower)

    async def _attach(self, following: Following) -> None:
        job_id = following.follower.job_id
        try:
            state = await self.broker.link.call("HGET", self.broker.keys.job(job_id), "state")
        except SollolError as error:
            self._end(following, error)
            return
        if state is None:
            self._end(following, JobLost(f"job {job_id} is not known here: its result expired, or the id is wrong"))
            return
        if following.follower.outcome is None:
            self._streams.follow(job_id)

    # --- keeping watch

    async def _attend(self) -> None:
        fields = {
            "version": VERSION,
            "host": platform.node(),
            "pid": str(os.getpid()),
            "metadata": repr(dict(self.metadata)) if self.metadata else "",
        }
        is_new = await self.broker.attend(
            self.inbox_name, self.app, inbox_ttl_ms=_INBOX_TTL_MS, app_fields=fields, app_ttl_ms=_APP_TTL_MS
        )
        if is_new:
            self._inbox.rewind()
            for following in self._following.values():
                following.look_at = 0.0  # its answer may have come while there was no inbox

    async def _keep_attending(self) -> None:
        while True:
            await asyncio.sleep(_ATTEND_SECONDS)
            with contextlib.suppress(SollolError):
                await self._attend()

    async def _look_after_jobs(self) -> None:
        """Find answers that passed us by, and send again what Redis has forgotten."""
        while True:
            await asyncio.sleep(_FIRST_LOOK_SECONDS / 2)
            try:
                await self._look()
            except SollolError as error:
                log.warning("looking after jobs: %s", error)

    async def _look(self) -> None:
        now = time.monotonic()
        due = [each for each in self._following.values() if each.look_at <= now]
        silent = []
        for following in due:
            is_silent = following.seen_news == following.follower.news
            following.seen_news = following.follower.news
            following.look_after = min(following.look_after * 2, _LONGEST_LOOK_SECONDS)
            following.look_at = now + following.look_after
            if is_silent:
                silent.append(following)
        if not silent:
            return
        views = await self.registry.states([each.follower.job_id for each in silent])
        for following, state in zip(silent, views, strict=True):
            if following.follower.outcome is not None:
                continue
            if state is None and following.request is not None:
                log.warning("job %s: Redis has lost it, sending it again", following.follower.job_id)
                self._own(self._submit_slowly(following))
            elif state is None or state.is_terminal:
                self._own(self._attach(following))

    def _own(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


