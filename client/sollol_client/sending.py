"""What goes out: submissions, pipelined while Redis is well and with patience while it is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.claim_rule import fits
from sollol_broker.errors import InvalidJob, NoNodeForModel, SollolError
from sollol_broker.live_log import LiveLog
from sollol_broker.log_entry import Level
from sollol_broker.quota_left import quota_left
from sollol_broker.registry import Registry
from sollol_broker.words import JobKind

from .following import Following
from .receiving import Receiver
from .refused import refusal
from .request import Request
from .sharing import Sharing
from .tasks import Tasks

# When Redis was away, its workers' adverts have run out. They come back with the next advert, every 4 s; until then
# nobody serves anything.
_RETURN_SECONDS = 10.0
_RETURN_LOOK_SECONDS = 0.25
# A client that leaves lets what it has sent arrive, but does not wait for a Redis that is away.
SETTLE_SECONDS = 2.0


class Sender:
    """Sends jobs, and makes of each reply what follows from it.

    Args:
        app: whose jobs they are. live: hears of those that are refused.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        receiver: Receiver,
        sharing: Sharing,
        tasks: Tasks,
        *,
        app: str,
        live: LiveLog,
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._receiver = receiver
        self._sharing = sharing
        self._tasks = tasks
        self._app = app
        self._live = live
        self._sending: set[asyncio.Future[Any]] = set()
        self._patient_until = 0.0

    def send(self, following: Following) -> None:
        """Send a job; while the connection stands, without waiting for anything."""
        self._receiver.follow(following)
        wire = self._broker.sure_link.ready()
        if wire is None:
            self.redis_was_away()
        if wire is None or (following.request is not None and following.request.requires is not None):
            self.send_slowly(following)
            return
        reply = wire.send(*self._command(following))
        self._on_its_way(following, reply)
        reply.add_done_callback(partial(self._on_reply, following))

    def send_slowly(self, following: Following) -> None:
        """Send a job with patience: over reconnects, a missing function library, and a look at what fits."""
        self._on_its_way_by(following, self._submit_slowly(following))

    def redis_was_away(self) -> None:
        """For a while, a fabric without workers is one whose workers have not come back yet."""
        self._patient_until = time.monotonic() + _RETURN_SECONDS

    def await_arrival(self, sending: asyncio.Future[Any]) -> None:
        """Let `settle` wait for something else that was sent."""
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def settle(self) -> None:
        """Let what was sent arrive; not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._sending:
                    await asyncio.wait(self._sending)

    def _command(self, following: Following) -> tuple[object, ...]:
        assert following.request is not None  # noqa: S101  # only submitted jobs are sent
        return self._broker.submit_command(following.request.submission)

    def _on_its_way(self, following: Following, sending: asyncio.Future[Any]) -> None:
        following.sending = sending
        self._sending.add(sending)

    def _arrived(self, following: Following, sending: asyncio.Future[Any]) -> None:
        self._sending.discard(sending)
        if following.sending is sending:
            following.sending = None
            if sending.cancelled():
                _end_span(following)

    def _on_its_way_by(self, following: Following, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.own(work)
        self._on_its_way(following, task)
        task.add_done_callback(partial(self._arrived, following))

    def _on_reply(self, following: Following, reply: asyncio.Future[Any]) -> None:
        self._arrived(following, reply)
        if reply.cancelled():
            return
        if reply.exception() is not None:
            self.redis_was_away()
            self.send_slowly(following)
        else:
            self._on_submitted(following, reply.result())

    async def _submit_slowly(self, following: Following) -> None:
        assert following.request is not None  # noqa: S101
        try:
            await self._check_requirements(following.request)
            was_away = self._broker.sure_link.ready() is None
            reply = await self._broker.submit(following.request.submission)
            if was_away:
                self.redis_was_away()
        except SollolError as error:
            _end_span(following, error)
            self._receiver.end(following, error)
            return
        self._on_submitted(following, reply)

    def _on_submitted(self, following: Following, reply: list[Any]) -> None:
        word = reply[0]
        if word in (b"queued", b"known", b"shared"):
            _end_span(following)
        if word == b"queued":
            if left := quota_left(reply[2:]):
                following.watcher.on_quota(left)
            following.watcher.on_accepted()
            return
        if word == b"known":
            # Sent before, by us or by somebody with the same key: its answer may already lie in its events.
            self._tasks.own(self._receiver.attach(following))
        elif word == b"shared":
            self._sharing.share(following, reply[1].decode(), is_done=reply[2] == b"done")
            following.watcher.on_accepted()
        elif word == b"full":
            model = following.request.model if following.request is not None else ""
            why, retry_seconds = reply[1].decode(), int(reply[2]) / 1000
            left = quota_left(reply[3:])
            error = refusal(why, retry_seconds, model=model, app=self._app, left=left)
            self._end_refused(following, error)
        else:
            self._on_its_way_by(following, self._refuse(following))

    async def _check_requirements(self, request: Request) -> None:
        if request.requires is None or request.submission.without_node:
            return
        nodes = await self._registry.nodes()
        for node in nodes:
            for worker in node.workers:
                vram = int(node.hardware.get("vram_total_mib", 0))
                serves = worker.state == "up" and request.model in worker.models
                if serves and fits(request.requires, node=node.name, labels=worker.labels, vram_mib=vram):
                    return
        if request.kind is JobKind.RERANK:
            await self._check_reranks(request.model)
        raise await self._no_node(request)

    async def _check_reranks(self, model: str) -> None:
        """Say so if the model is there, and no server reranks with it."""
        served = {each.name: each for each in await self._registry.models()}
        if model in served and JobKind.RERANK not in served[model].kinds:
            able = ", ".join(name for name, each in served.items() if JobKind.RERANK in each.kinds)
            raise InvalidJob(
                f"{model} does not rerank on any node; models that do: {able or 'none'}", field="model"
            )

    async def _refuse(self, following: Following) -> None:
        assert following.request is not None  # noqa: S101
        if time.monotonic() < self._patient_until:
            await asyncio.sleep(_RETURN_LOOK_SECONDS)
            self.send_slowly(following)
            return
        try:
            error: SollolError = await self._no_node(following.request)
        except SollolError as unreachable:
            error = unreachable
        self._end_refused(following, error)

    def _end_refused(self, following: Following, error: SollolError) -> None:
        request = following.request
        _end_span(following, error)
        self._live.note(
            Level.WARNING,
            "job refused",
            app=request.submission.app if request is not None else "",
            job=following.job_id,
            model=request.model if request is not None else "",
            error=type(error).__name__,
        )
        self._receiver.end(following, error)

    async def _no_node(self, request: Request) -> NoNodeForModel:
        reasons = await self._registry.reasons(request.model, request.requires)
        if not reasons:
            return NoNodeForModel(
                f"no worker is connected to {self._broker.url}: start `sollol-worker --redis URL` on a node"
            )
        told = "; ".join(f"{node}: {why}" for node, why in sorted(reasons.items()))
        return NoNodeForModel(f"no node serves {request.model} ({told})", reasons=reasons)


def _end_span(following: Following, error: SollolError | None = None) -> None:
    if following.request is not None:
        following.request.span.end(error)
