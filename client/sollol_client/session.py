"""The client's core: one pipelined connection to submit, one inbox for every answer. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import platform
import secrets
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.claim_rule import fits
from sollol_broker.errors import (
    ClientClosed,
    JobDead,
    JobLost,
    NoNodeForModel,
    SollolError,
)
from sollol_broker.explain_reader import Explainer
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.link import LinkConfig
from sollol_broker.names import check_name
from sollol_broker.operations import Operations
from sollol_broker.registry import Registry
from sollol_broker.url import BrokerUrl
from sollol_broker.version import VERSION
from sollol_broker.words import Entry, JobState

from .answer import Answer
from .cache import AnswerCache
from .cache_key import CacheSettings
from .follow import Follower
from .following import Following, Followings, Watcher
from .refused import refusal
from .request import Request
from .shared_answers import begin_generation, drop_pointers, read_end, read_generations
from .streams import StreamReader

log = logging.getLogger(__name__)

# The inbox outlives three missed signs of life; after that, answers wait in the jobs' own events.
_ATTEND_SECONDS = 20.0
_INBOX_TTL_MS = 60_000
_APP_TTL_MS = 120_000
# A job without news is looked up after this long, then after twice that, up to a minute.
_FIRST_LOOK_SECONDS = 5.0
_LONGEST_LOOK_SECONDS = 60.0
# When Redis was away, its workers' adverts have run out. They come back with the next advert, every 4 s; until then
# nobody serves anything.
_RETURN_SECONDS = 10.0
_RETURN_LOOK_SECONDS = 0.25
# Time for the workers to end a job at its deadline before its client does.
_DEADLINE_GRACE_SECONDS = 5.0
# A client that leaves lets what it has sent arrive, but does not wait for a Redis that is away.
_SETTLE_SECONDS = 2.0


@dataclass(slots=True)
class Session:
    """Submits jobs and hands each answer to whoever waits for it.

    Args:
        url: the fabric's Redis.
        app: the application's name, as the fabric shows it.
        answers: kept for equal requests.
    """

    url: BrokerUrl
    app: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    config: LinkConfig | None = None
    answers: AnswerCache | None = None
    inbox_name: str = field(default_factory=lambda: f"c-{secrets.token_hex(8)}")
    broker: Broker = field(init=False)
    registry: Registry = field(init=False)
    operations: Operations = field(init=False)
    explainer: Explainer = field(init=False)
    _following: Followings = field(default_factory=Followings)
    _outbox: deque[Following] = field(default_factory=deque)
    _sending: set[asyncio.Future[Any]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _answers: AnswerCache = field(init=False)
    _inbox: Inbox = field(init=False)
    _streams: StreamReader = field(init=False)
    _started: bool = False
    _starting: bool = False
    _patient_until: float = 0.0
    _closed: bool = False

    def __post_init__(self) -> None:
        check_name(self.app, "app")
        self._answers = self.answers or AnswerCache(self.app, CacheSettings(enabled=False))
        self.broker = Broker(self.url, name=f"sollol-client-{self.inbox_name}", config=self.config)
        self.registry = Registry(self.broker)
        self.operations = Operations(self.broker)
        self.explainer = Explainer(self.broker, self.registry)
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
        await self._settle()
        self._closed = True
        self.flush()  # ends what has never left
        await self._inbox.stop()
        await self._streams.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for following in self._following.all():
            text = f"the client was closed; job {following.job_id} goes on: attach() finds it"
            self._end(following, ClientClosed(text))
        if self._started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_SECONDS):
                    await self.broker.drop_inbox(self.inbox_name)
        await self.broker.close()

    def submit(self, request: Request, watcher: Watcher) -> bool:
        """Queue a job for sending; `flush` sends. Its end, or its refusal, reaches the watcher.

        The one method that any thread may call.

        Returns:
            Whether there is something to send: no, where its answer is kept here and the watcher has it by now.
        """
        following = Following(Follower(request.job_id), watcher, request)
        if self._is_answered_here(following, request.submission.cache_key):
            return False
        self._outbox.append(following)
        return True

    def flush(self) -> None:
        """Send what is queued, all in one go; must run in the event loop."""
        if not self._started and not self._closed:
            if not self._starting:
                self._starting = True
                self._own(self._start_late())
            return
        wire = self.broker.link.ready()
        while self._outbox:  # one by one: other threads go on adding
            following = self._outbox.popleft()
            if self._closed:
                self._end(following, ClientClosed("the client is closed"))
                continue
            self._follow(following)
            if wire is None:
                self._redis_was_away()
            if wire is None or (following.request is not None and following.request.requires is not None):
                self._send_slowly(following)
                continue
            reply = wire.send(*self._command(following))
            self._on_its_way(following, reply)
            reply.add_done_callback(partial(self._on_reply, following))

    def attach(self, job_id: str, watcher: Watcher) -> None:
        """Follow a job that this session did not submit; its end reaches the watcher."""
        following = Following(Follower(job_id), watcher)
        self._follow(following)
        self._own(self._attach(following))

    async def cancel(self, job_id: str) -> str:
        """Cancel a job: "cancelled", the state it had ended in before, or "unknown".

        Who waits here for the answer to somebody else's request stops waiting, and that one's job goes on.
        """
        self.flush()
        # A cancel that overtakes its job would find nothing, and the job would run.
        while sending := [each.sending for each in self._following.of(job_id) if each.sending]:
            await asyncio.wait(sending)
        if sharers := self._following.sharers(job_id):
            for each in sharers:
                self._end_as(each, JobState.CANCELLED)
            return JobState.CANCELLED.value
        return await self.broker.cancel(job_id)

    def cancel_soon(self, job_id: str) -> None:
        """Cancel a job without waiting; `close` lets the cancel arrive."""
        task = asyncio.ensure_future(self._cancel_quietly(job_id))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def invalidate_cache(self, model_key: str) -> set[str]:
        """Drop a model's answers, here and in Redis; other processes hear of it within 20 s. Gives their keys."""
        dropped = self._answers.keys_of(model_key)
        generation = await begin_generation(self.broker, model_key)
        self._answers.note_generation(model_key, generation)
        return dropped | await drop_pointers(self.broker, model_key)

    async def clear_cache(self) -> None:
        """Drop all answers of this cache's scope; other processes hear of it within 20 s."""
        self._answers.clear()
        name = self._answers.scope_field
        self._answers.note_generation(name, await begin_generation(self.broker, name))

    # --- sending

    async def _start_late(self) -> None:
        """Start because somebody submitted without opening the client first."""
        try:
            await self.start()
        except SollolError as error:
            while self._outbox:
                self._end(self._outbox.popleft(), error)
        finally:
            self._starting = False

    def _command(self, following: Following) -> tuple[object, ...]:
        assert following.request is not None  # noqa: S101  # only submitted jobs are sent
        return self.broker.command("submit", *following.request.submission.arguments())

    def _on_its_way(self, following: Following, sending: asyncio.Future[Any]) -> None:
        following.sending = sending
        self._sending.add(sending)

    def _arrived(self, following: Following, sending: asyncio.Future[Any]) -> None:
        self._sending.discard(sending)
        if following.sending is sending:
            following.sending = None

    def _on_reply(self, following: Following, reply: asyncio.Future[Any]) -> None:
        self._arrived(following, reply)
        if reply.cancelled():
            return
        if reply.exception() is not None:
            self._redis_was_away()
            self._send_slowly(following)
        else:
            self._on_submitted(following, reply.result())

    def _redis_was_away(self) -> None:
        """For a while, a fabric without workers is one whose workers have not come back yet."""
        self._patient_until = time.monotonic() + _RETURN_SECONDS

    def _send_slowly(self, following: Following) -> None:
        self._on_its_way_by(following, self._submit_slowly(following))

    def _on_its_way_by(self, following: Following, work: Coroutine[Any, Any, None]) -> None:
        task = self._own(work)
        self._on_its_way(following, task)
        task.add_done_callback(partial(self._arrived, following))

    async def _settle(self) -> None:
        """Let submissions and cancels arrive."""
        if self._started:
            self.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while self._sending:
                    await asyncio.wait(self._sending)

    async def _cancel_quietly(self, job_id: str) -> None:
        try:
            await self.cancel(job_id)
        except SollolError as error:
            log.warning("job %s: it could not be cancelled: %s", job_id, error)

    async def _submit_slowly(self, following: Following) -> None:
        """Submit with patience: over reconnects, a missing function library, and a look at what fits."""
        assert following.request is not None  # noqa: S101
        try:
            await self._check_requirements(following.request)
            was_away = self.broker.link.ready() is None
            reply = await self.broker.submit(following.request.submission)
            if was_away:
                self._redis_was_away()
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
                serves = worker.state == "up" and request.model in worker.models
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
        elif word == b"shared":
            self._share(following, reply[1].decode(), is_done=reply[2] == b"done")
        elif word == b"full":
            model = following.request.model if following.request is not None else ""
            self._end(following, refusal(reply[1].decode(), int(reply[2]) / 1000, model=model, app=self.app))
        else:
            self._on_its_way_by(following, self._refuse(following))

    async def _refuse(self, following: Following) -> None:
        assert following.request is not None  # noqa: S101
        if time.monotonic() < self._patient_until:
            await asyncio.sleep(_RETURN_LOOK_SECONDS)
            self._send_slowly(following)
            return
        try:
            error: SollolError = await self._no_node(following.request.model)
        except SollolError as unreachable:
            error = unreachable
        self._end(following, error)

    async def _no_node(self, model: str) -> NoNodeForModel:
        reasons = await self.registry.reasons(model)
        if not reasons:
            return NoNodeForModel(
                f"no worker is connected to {self.url}: start `sollol-worker --redis URL` on a node"
            )
        told = "; ".join(f"{node}: {why}" for node, why in sorted(reasons.items()))
        return NoNodeForModel(f"no node serves {model} ({told})", reasons=reasons)

    # --- sharing

    def _is_answered_here(self, following: Following, key: str) -> bool:
        kept = self._answers.find(key) if key and not self._closed else None
        if kept is None:
            return False
        following.follower.restart(kept.job_id)
        following.watcher.on_id(kept.job_id)
        following.follower.take(_end_entry(JobState.DONE, kept.data))
        _say_cached(following, "local")
        following.watcher.on_end(following.follower)
        return True

    def _share(self, following: Following, job_id: str, *, is_done: bool) -> None:
        """Wait for the answer to an equal request, or fetch it."""
        if following.follower.outcome is not None:
            return
        self._unfollow(following)
        following.shares = True
        following.follower.restart(job_id)
        following.watcher.on_id(job_id)
        self._answers.count_shared()
        self._following.add(following)
        if following.deadline_at < math.inf:
            left = max(0.0, following.deadline_at - _DEADLINE_GRACE_SECONDS - time.monotonic())
            loop = asyncio.get_running_loop()
            following.timer = loop.call_later(left, self._end_as, following, JobState.EXPIRED)
        if is_done:
            self._own(self._fetch_end(following))
        else:
            self._streams.follow(job_id)

    async def _fetch_end(self, following: Following) -> None:
        try:
            entry = await read_end(self.broker, following.job_id)
        except SollolError as error:
            self._end(following, error)
            return
        if following.follower.outcome is not None:
            return
        if entry is None:
            self._go_alone(following)  # it ran out in between
        else:
            self._take(following, entry)

    def _go_alone(self, following: Following) -> None:
        """What it shared has ended without an answer: submit it after all, for itself alone."""
        assert following.request is not None  # noqa: S101  # only submitted jobs share
        if self._closed:
            self._ended(following)
            return
        request, deadline_ms = following.request, 0
        if following.deadline_at < math.inf:
            left = following.deadline_at - _DEADLINE_GRACE_SECONDS - time.monotonic()
            deadline_ms = max(1, round(left * 1000))
        self._unfollow(following)
        alone = replace(request.submission, cache_key="", deadline_ms=deadline_ms)
        following.request = replace(request, submission=alone)
        following.follower.restart(request.job_id)
        following.watcher.on_id(request.job_id)
        self._follow(following)
        self._send_slowly(following)

    # --- receiving

    def _follow(self, following: Following) -> None:
        now = time.monotonic()
        following.look_after = _FIRST_LOOK_SECONDS
        following.look_at = now + following.look_after
        if following.request is not None and following.request.submission.deadline_ms:
            following.deadline_at = (
                now + following.request.submission.deadline_ms / 1000 + _DEADLINE_GRACE_SECONDS
            )
        self._following.add(following)

    def _on_inbox_entry(self, entry: EntryFields) -> None:
        job_id = entry.get(b"j")
        if job_id is not None:
            self._on_job_entry(job_id.decode(), entry)

    def _on_job_entry(self, job_id: str, entry: EntryFields) -> None:
        for following in self._following.of(job_id):
            self._take(following, entry)

    def _take(self, following: Following, entry: EntryFields) -> None:
        try:
            piece = following.follower.take(entry)
        except SollolError as error:
            self._end(following, error)
            return
        if piece is not None:
            following.watcher.on_piece(piece)
        if following.follower.lacks_pieces and not following.catching_up:
            self._streams.follow(following.job_id)
        following.catching_up = following.follower.lacks_pieces
        outcome = following.follower.outcome
        if outcome is None:
            return
        if isinstance(outcome, Answer):
            self._keep_answer(following, entry[b"d"])
        elif following.shares and not isinstance(outcome, JobDead):  # what kills workers is not tried again
            self._go_alone(following)
            return
        self._ended(following)

    def _keep_answer(self, following: Following, data: bytes) -> None:
        if following.shares:
            _say_cached(following, "shared")
        request = following.request
        if request is not None and request.submission.cache_key:
            job_id = following.job_id
            self._answers.keep(request.submission.cache_key, request.model, job_id, data)

    def _end(self, following: Following, error: SollolError) -> None:
        following.follower.end(error)
        self._ended(following)

    def _end_as(self, following: Following, state: JobState) -> None:
        """End it here as if Redis had said so."""
        following.follower.take(_end_entry(state))
        self._ended(following)

    def _ended(self, following: Following) -> None:
        self._unfollow(following)
        following.watcher.on_end(following.follower)

    def _unfollow(self, following: Following) -> None:
        if self._following.remove(following):
            self._streams.forget(following.job_id)

    async def _attach(self, following: Following) -> None:
        job_id = following.job_id
        try:
            state = await self.broker.link.call("HGET", self.broker.keys.job(job_id), "state")
        except SollolError as error:
            self._end(following, error)
            return
        if state is None and following.shares:
            self._go_alone(following)
            return
        if state is None:
            self._end(
                following, JobLost(f"job {job_id} is not known here: its result expired, or the id is wrong")
            )
            return
        if following.follower.outcome is None:
            self._streams.follow(job_id)

    # --- keeping watch

    async def _attend(self) -> None:
        fields = {
            "version": VERSION,
            "host": platform.node(),
            "pid": str(os.getpid()),
            "metadata": json.dumps(dict(self.metadata), default=str),
        }
        is_new = await self.broker.attend(
            self.inbox_name, self.app, inbox_ttl_ms=_INBOX_TTL_MS, app_fields=fields, app_ttl_ms=_APP_TTL_MS
        )
        self._answers.note_generations(await read_generations(self.broker))
        if is_new:
            self._inbox.rewind()
            for following in self._following.all():
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
        if any(each.deadline_at < now for each in self._following.all()):
            # Workers end jobs at their deadline; where there is no worker, whoever waits does.
            await self.broker.reap()
        due = [each for each in self._following.all() if each.look_at <= now and each.sending is None]
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
        states = await self.registry.states([each.job_id for each in silent])
        if None in states:
            await self._attend()  # a Redis that has lost jobs has lost our inbox, too, and the workers
            self._redis_was_away()
        for following, state in zip(silent, states, strict=True):
            if following.follower.outcome is not None or following.sending is not None:
                continue
            if state is None and following.shares:
                self._go_alone(following)
            elif state is None and following.request is not None:
                log.warning("job %s: Redis has lost it, sending it again", following.job_id)
                following.follower.restart()
                self._send_slowly(following)
            elif state is None or state.is_terminal:
                self._own(self._attach(following))

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _end_entry(state: JobState, data: bytes = b"") -> EntryFields:
    return {b"t": Entry.END.encode(), b"x": state.encode(), b"f": b"0", b"d": data}


def _say_cached(following: Following, where: str) -> None:
    answer = following.follower.outcome
    if isinstance(answer, Answer):
        answer.routing = replace(answer.routing, cached=where)
