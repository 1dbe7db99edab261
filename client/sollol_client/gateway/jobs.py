"""Jobs over HTTP: hand one in and leave, ask for it, follow it from anywhere, cancel it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from sollol_broker.errors import InvalidJob
from sollol_broker.words import JobKind

from ..answer import Answer, Delta
from .asked import Asked
from .body import parsed, read_body
from .caller import caller_of
from .refusals import Refusal, Refused
from .replies import as_json, json_reply, routing_of, stream_reply
from .running import Note, Running
from .serving import Serving
from .webhooks import Webhooks, outcome_of

# Fields of a job that are arguments of `submit` and no business of the backend's.
_SUBMIT = (
    "metadata",
    "requires",
    "idempotency_key",
    "hedge",
    "prefer",
    "timeout",
    "result_ttl",
    "wait_for_node",
    "query",
)
_BODY = {
    JobKind.CHAT: "messages",
    JobKind.GENERATE: "prompt",
    JobKind.EMBED: "input",
    JobKind.RERANK: "documents",
}
# They stand under the kind's own name; `documents` is a field of some servers' chats, too.
_NOT_SAID_SO = ("messages", "prompt", "input")
_MOST_LISTED = 1000
_LONGEST_WAIT = 60.0
# Reading an answer that is there takes a moment.
_FETCH_SECONDS = 5.0


class Jobs:
    """Answers under /api/jobs."""

    def __init__(self, serving: Serving, webhooks: Webhooks) -> None:
        self._serving = serving
        self._webhooks = webhooks

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/api/jobs", self.submit, methods=["POST"]),
            Route("/api/jobs", self.all, methods=["GET"]),
            Route("/api/jobs/{id}", self.one, methods=["GET"]),
            Route("/api/jobs/{id}", self.cancel, methods=["DELETE"]),
            Route("/api/jobs/{id}/stream", self.stream, methods=["GET"]),
        ]

    async def submit(self, http: HttpRequest) -> Response:
        """POST /api/jobs: {"model", one of "chat", "generate", "embed", "rerank", …, "webhook"?} → 202 {"id", …}."""
        fields = parsed(await read_body(http, self._serving.config.max_body_bytes))
        asked, webhook = job_asked(fields)
        if webhook is not None:
            await self._webhooks.check(webhook)
        running = await self._serving.run(http, asked)
        running.keep_nothing()
        await running.accepted()
        if webhook is not None:
            self._webhooks.tell(webhook, running)
        where = await running.where()
        told = {"id": running.id, "state": running.state, **where.as_dict()}
        return json_reply(told, 202, {**running.headers(), "Location": f"/api/jobs/{running.id}"})

    async def all(self, http: HttpRequest) -> Response:
        """GET /api/jobs?limit=50: the caller's running, waiting and latest jobs."""
        caller, limit = caller_of(http), _limit(http.query_params.get("limit", "50"))
        jobs = [
            each.as_dict() for each in await self._serving.client.jobs(_MOST_LISTED) if caller.owns(each.app)
        ]
        return json_reply({"jobs": jobs[:limit]})

    async def one(self, http: HttpRequest) -> Response:
        """GET /api/jobs/ID?wait=0: its record, with its answer or error once it has ended; waits so many seconds."""
        job_id, wait = http.path_params["id"], _seconds(http.query_params.get("wait", "0"))
        async with await self._serving.follow(http, job_id) as running:
            ended: dict[str, Any] = {}
            job = await self._serving.client.job(job_id)
            is_over = job is not None and job.state.is_terminal
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_SECONDS if is_over else wait):
                    ended = await outcome_of(running)
            if ended:
                job = await self._serving.client.job(job_id)
            where = {} if ended else (await running.where()).as_dict()
        record = job.as_dict() if job is not None else {}
        return json_reply({**record, **where, **ended})

    async def cancel(self, http: HttpRequest) -> Response:
        """DELETE /api/jobs/ID: stop it; 409 where it has ended."""
        job_id = http.path_params["id"]
        job = await self._serving.owned(http, job_id)
        word = await self._serving.client.session.cancel(job_id)
        if word != "cancelled":
            raise Refused(
                409, f"job {job_id} cannot be cancelled: it is {job.state if word == 'unknown' else word}"
            )
        return json_reply({"id": job_id, "state": "cancelled"})

    async def stream(self, http: HttpRequest) -> Response:
        """GET /api/jobs/ID/stream?after=ENTRY: its text as server-sent events; Last-Event-ID does as well."""
        last = http.headers.get("last-event-id", "").rpartition("/")[2]
        after = http.query_params.get("after") or last or None
        running = await self._serving.follow(http, http.path_params["id"], after)
        return await stream_reply(running, JobEvents(running), self._serving.config)


class JobEvents:
    """Server-sent events of a job: pieces without a name, `end`, `error`; waiting shows as comments."""

    media_type = "text/event-stream"
    always_notes = True

    def __init__(self, running: Running) -> None:
        self._running = running

    def piece(self, piece: Delta) -> bytes:
        """See Framing."""
        more = {"thinking": piece.thinking, "tool_calls": piece.tool_calls, "logprobs": piece.logprobs}
        said = {"text": str(piece), **{name: value for name, value in more.items() if value}}
        return b"id: " + piece.entry_id.encode() + b"\ndata: " + as_json(said) + b"\n\n"

    def note(self, note: Note) -> bytes:
        """See Framing."""
        return b": " + as_json(note.as_dict()) + b"\n\n"

    def end(self, answer: Answer) -> bytes:
        """See Framing."""
        told = {**answer, "_sollol_routing": routing_of(answer)}
        return b"event: end\ndata: " + as_json(told) + b"\n\n"

    def failed(self, refusal: Refusal) -> bytes:
        """See Framing."""
        told = {"error": refusal.text, "code": refusal.code, "status": refusal.status}
        return b"event: error\ndata: " + as_json(told) + b"\n\n"


def job_asked(fields: object) -> tuple[Asked, str | None]:
    """From the body of POST /api/jobs: what is asked, and the webhook.

    Raises:
        InvalidJob: names the field at fault.
    """
    if not isinstance(fields, dict):
        raise InvalidJob("an object is needed", field="body")
    kinds = [kind for kind in _BODY if fields.get(kind.value) is not None]
    if len(kinds) != 1:
        raise InvalidJob("exactly one of chat, generate, embed and rerank is needed", field="chat")
    model, webhook = fields.get("model"), fields.get("webhook")
    if not isinstance(model, str) or not model:
        raise InvalidJob("model: a name is needed", field="model")
    (kind,) = kinds
    submit = {name: fields[name] for name in _SUBMIT if fields.get(name) is not None}
    out = {*_SUBMIT, *(each.value for each in JobKind), "model", "webhook", "stream", *_NOT_SAID_SO}
    payload = {name: value for name, value in fields.items() if name not in out and value is not None}
    payload[_BODY[kind]] = fields[kind.value]
    return Asked(kind, model, payload, kind in (JobKind.CHAT, JobKind.GENERATE), submit), webhook


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= _MOST_LISTED:
        raise InvalidJob(f"limit: a number from 1 to {_MOST_LISTED} is needed", field="limit")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_WAIT:
        raise InvalidJob(f"wait: seconds from 0 to {_LONGEST_WAIT:g} are needed", field="wait")
    return seconds
