"""The one place where a request of any API becomes a job of the fabric."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest

from sollol_broker.names import canonical_model
from sollol_broker.registry import JobView
from sollol_broker.words import JobKind

from ..aio import AsyncClient
from ..follow import check_entry_id
from ..request import build_request
from .asked import Asked, Wishes, take_wishes
from .caller import caller_of
from .config import GatewayConfig
from .numbers import check_numbers
from .places import places_of
from .refusals import Refused, UnknownModel
from .running import Note, Running

__all__ = ["Asked", "Note", "Running", "Serving"]

# Where each kind of job has its body.
_BODY = {JobKind.CHAT: "messages", JobKind.GENERATE: "prompt", JobKind.EMBED: "input",
         JobKind.RERANK: "documents", JobKind.WARM: "warm"}  # fmt: skip


class Serving:
    """Runs requests through the fabric.

    Args:
        client: through which they go.
    """

    def __init__(self, client: AsyncClient, config: GatewayConfig) -> None:
        self.client = client
        self.config = config

    async def run(self, http: HttpRequest, asked: Asked, number: int = 0) -> Running:
        """Submit what was asked; enter what it gives before anything is awaited of it.

        With a `Last-Event-ID: JOB/ENTRY` the stream of a job goes on that was submitted before, by this gateway or
        another.

        Args:
            number: of the choice, where a request has several.

        Raises:
            UnknownModel: its caller may not use the model.
            InvalidJob: it makes no sense; nothing was sent.
        """
        wishes, payload = take_wishes(http.headers, asked.payload)
        caller = caller_of(http)
        if not caller.may_use(asked.model):
            raise UnknownModel(asked.model)
        if asked.stream and (last := http.headers.get("last-event-id", "")):
            return await self._resume(http, asked, wishes, *places_of(last, number))
        check_numbers(payload)
        body = payload.pop(_BODY[asked.kind])
        session = self.client.session
        request = build_request(
            caller.app(wishes.app),
            session.inbox_name,
            answer_cache=self.client.answers,
            model=asked.model,
            stream=asked.stream,
            priority=caller.priority(wishes.priority),
            **{asked.kind.value: body},
            backend=payload,
            **{**wishes.submit, **asked.submit},
        )
        running = Running(
            self.client,
            request.job_id,
            asked.model,
            detached=wishes.detach,
            progress=wishes.progress,
        )
        self.client.send(request, running)
        return running.of(http)

    async def follow(self, http: HttpRequest, job_id: str, after: str | None = None) -> Running:
        """Wait for a job that was submitted before; its client may leave without ending it.

        Args:
            after: the stream goes on behind this entry.

        Raises:
            InvalidJob: `after` is no entry id.
            Refused: the caller has no such job.
        """
        check_entry_id(after)
        job = await self.owned(http, job_id)
        running = Running(self.client, job_id, job.model, detached=True, resumed=bool(after))
        self.client.session.attach(job_id, running, after)
        return running.of(http)

    async def owned(self, http: HttpRequest, job_id: str) -> JobView:
        """The record of a job of the caller's.

        Raises:
            Refused: 404, it has no such job.
        """
        job = await self.client.job(job_id) if _is_id(job_id) else None
        if job is None or not caller_of(http).owns(job.app):
            raise Refused(404, "there is no such job here: its result has expired, or the id is wrong")
        return job

    async def sees(self, http: HttpRequest, model: str) -> bool:
        """Whether a live node has a model that the caller may use."""
        name = canonical_model(model)
        there = caller_of(http).may_use(model)
        return there and any(each.name == name for each in await self.client.models())

    async def unload(self, model: str) -> None:
        """Put a model out of memory on each node that has it there, as soon as its running jobs are done."""
        name = canonical_model(model)
        served = {each.name: each for each in await self.client.models()}
        nodes = served[name].loaded_on if name in served else ()
        jobs = [self.client.warm(model, node=node, keep_alive=0, priority=10) for node in nodes]
        for job in jobs:
            await job

    async def _resume(
        self, http: HttpRequest, asked: Asked, wishes: Wishes, job_id: str, after: str
    ) -> Running:
        """From its beginning: how the rest looks may depend on what came before."""
        await self.owned(http, job_id)
        running = Running(
            self.client, job_id, asked.model, detached=True, progress=wishes.progress, after=after
        )
        self.client.session.attach(job_id, running, None)
        return running.of(http)


def _is_id(text: str) -> bool:
    return len(text) <= 64 and text.isascii() and text.isalnum()
