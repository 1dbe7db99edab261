"""Batches over HTTP: hand thousands of texts in and leave, ask how far they are, read their vectors, cancel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sollol_broker.batch_record import BatchView
from sollol_broker.batch_store import BatchStore
from sollol_broker.errand_store import ErrandStore
from sollol_broker.errors import InvalidJob, NoNodeForModel, QueueFull, SollolError
from sollol_broker.names import canonical_model
from sollol_broker.words import BatchState, JobKind, Priority

from ..batch import AsyncBatch
from ..batch_item import BatchItem
from ..batch_reader import BatchReader
from ..batching import start_batch
from .asked import take_wishes
from .body import parsed, read_body
from .caller import caller_of
from .errands import Errands
from .numbers import check_numbers
from .openai_files import limit_of
from .refusals import Refused, UnknownModel, refusal_of
from .replies import as_json, json_reply
from .serving import Serving
from .webhooks import Webhooks

# Of its errand.
PLAIN = "batch"
_MOST_LISTED = 1000
_MOST_ITEMS = 10**8
# A batch that cannot be taken in within so long is refused.
_TAKING_SECONDS = 60.0
_LOOK_SECONDS = 0.02
# Items in one piece of an answer: others get their turn between two.
_ITEMS_AT_ONCE = 32
_MOST_RESULT_BYTES = 1024 * 1024 * 1024
_NOT_FOR_BACKENDS = ("model", "documents", "metadata", "webhook", "messages", "prompt", "input", "stream")
_SUBMIT = ("timeout", "prefer", "wait_for_node")


class Batches:
    """Answers under /api/batch."""

    def __init__(self, serving: Serving, webhooks: Webhooks, store: ErrandStore, errands: Errands) -> None:
        self._serving = serving
        self._webhooks = webhooks
        self._errands = errands
        self._owed = store
        self._batches = BatchStore(serving.client.session.broker)

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/api/batch/embed", self.embed, methods=["POST"]),
            Route("/api/batch/jobs", self.all, methods=["GET"]),
            Route("/api/batch/jobs/{id}", self.one, methods=["GET"]),
            Route("/api/batch/jobs/{id}", self.cancel, methods=["DELETE"]),
            Route("/api/batch/results/{id}", self.results, methods=["GET"]),
        ]

    async def embed(self, http: HttpRequest) -> Response:
        """POST /api/batch/embed: {"model", "documents", "metadata"?, "webhook"?} → {"job_id", "status", …}."""
        given = parsed(await read_body(http, self._serving.config.max_body_bytes))
        if not isinstance(given, dict):
            raise Refused(400, "an object is needed")
        wishes, fields = take_wishes({"x-sollol-priority": str(int(Priority.BATCH)), **http.headers}, given)
        documents = _documents(fields.get("documents"), self._serving.config.max_documents)
        model, caller = fields.get("model"), caller_of(http)
        if not isinstance(model, str) or not model:
            raise InvalidJob("model: a name is needed", field="model")
        if not caller.may_use(model):
            raise UnknownModel(model)
        if (webhook := fields.get("webhook")) is not None:
            await self._webhooks.check(webhook)
        backend = {name: v for name, v in fields.items() if name not in _NOT_FOR_BACKENDS and v is not None}
        check_numbers(backend)
        try:
            batch = await start_batch(
                self._serving.client.session,
                app=caller.app(wishes.app),
                embed=documents,
                model=model,
                priority=caller.priority(wishes.priority),
                metadata=fields.get("metadata"),
                ahead_bytes=2 * self._serving.config.max_body_bytes,
                max_result_bytes=_MOST_RESULT_BYTES,
                **{name: wishes.submit[name] for name in _SUBMIT if name in wishes.submit},
                payload=backend,
            )
        except NoNodeForModel as error:
            raise await self._explained(model, error) from None
        await _taken_in(batch)
        # From now on any gateway moves it on, this one as well as another.
        await self._owed.put(batch.id, {"kind": PLAIN, "url": webhook})
        await batch.leave()
        self._errands.hurry()
        told = {
            "job_id": batch.id,
            "status": str(batch.state.value),
            "total_items": len(documents),
            "message": f"{len(documents):,} documents taken in; ask GET /api/batch/jobs/{batch.id}",
        }
        return json_reply(told, headers={"Location": f"/api/batch/jobs/{batch.id}"})

    async def all(self, http: HttpRequest) -> Response:
        """GET /api/batch/jobs?limit=100: the caller's batches, the newest first."""
        caller, limit = caller_of(http), limit_of(http.query_params.get("limit", "100"), _MOST_LISTED)
        views = [view for view in await self._batches.views(_MOST_LISTED) if caller.owns(view.app)]
        return json_reply({"jobs": [status_of(view) for view in views[:limit]]})

    async def one(self, http: HttpRequest) -> Response:
        """GET /api/batch/jobs/{id}: how far it is."""
        return json_reply(status_of(await self._owned(http)))

    async def cancel(self, http: HttpRequest) -> Response:
        """DELETE /api/batch/jobs/{id}: end it; what has been answered can still be read."""
        view = await self._owned(http)
        state = view.state
        if not state.is_terminal:
            state = await self._batches.halt(view.id, BatchState.CANCELLED) or state
        is_done = not view.state.is_terminal and state is BatchState.CANCELLED
        message = "cancelled" if is_done else f"it had ended before: it is {state.value}"
        return json_reply({"job_id": view.id, "cancelled": is_done, "message": message})

    async def results(self, http: HttpRequest) -> Response:
        """GET /api/batch/results/{id}?offset=0&limit=: vectors in order; null where there is none (yet)."""
        view, query = await self._owned(http), http.query_params
        if not view.keep or view.id.startswith("batch_"):
            raise Refused(
                409, f"the results of batch {view.id} go to the program or the file that they are for"
            )
        total = view.total if view.total is not None else view.fed
        offset = 0 if query.get("offset", "0") == "0" else limit_of(query["offset"], _MOST_ITEMS, "offset")
        count = max(0, total - offset)
        if "limit" in query:
            count = min(count, limit_of(query["limit"], _MOST_ITEMS))
        return StreamingResponse(self._told(view, offset, count, total), media_type="application/json")

    async def _told(
        self, view: BatchView, offset: int, count: int, total: int
    ) -> AsyncGenerator[bytes, None]:
        """The answer, piece by piece: no batch is held as a whole."""
        status = {"job_id": view.id, "status": view.state.value, "total_items": total, "offset": offset}
        yield as_json(status)[:-1] + b',"results":['
        errors: list[dict[str, Any]] = []
        parts: list[bytes] = []
        at = offset
        async for item in self._items(view, offset, count):
            parts += [b"null"] * (item.index - at)
            parts.append(as_json(_result_of(view.kind, item)))
            at = item.index + 1
            if item.error is not None:
                refusal = refusal_of(item.error)
                errors.append({"index": item.index, "error": refusal.text, "code": refusal.code})
            if len(parts) >= _ITEMS_AT_ONCE:
                yield b",".join(parts) + (b"," if at < offset + count else b"")
                parts = []
        parts += [b"null"] * (offset + count - at)
        following = offset + count if offset + count < total else None
        yield (
            b",".join(parts)
            + b'],"errors":'
            + as_json(errors)
            + b',"next_offset":'
            + as_json(following)
            + b"}"
        )

    async def _items(self, view: BatchView, offset: int, count: int) -> AsyncGenerator[BatchItem, None]:
        """What has ended by now; of a batch that has ended itself, all."""

        async def news(seen: BatchView) -> None:
            """It has ended, so there is none."""

        if not count:
            return
        reader = BatchReader(self._batches, look=lambda: view, news=news)
        async for page in reader.in_order(offset, count, waits=view.state.is_terminal):
            for item in page:
                yield item

    async def _owned(self, http: HttpRequest) -> BatchView:
        batch_id = http.path_params["id"]
        view = await self._batches.view(batch_id) if _is_id(batch_id) else None
        if view is None or not caller_of(http).owns(view.app):
            raise Refused(404, "there is no such batch here: it has expired, or the id is wrong")
        return view

    async def _explained(self, model: str, error: NoNodeForModel) -> SollolError:
        """Whether the model is not there at all, or only nobody serves it now."""
        known = {each.name for each in await self._serving.client.models()}
        is_unknown = bool(error.reasons) and canonical_model(model) not in known
        return UnknownModel(model) if is_unknown else error


def status_of(view: BatchView) -> dict[str, Any]:
    """How a batch stands, as plain data."""
    total = view.total if view.total is not None else view.fed
    since, until = view.started_at, view.ended_at
    told = {
        "job_id": view.id,
        "job_type": view.kind.value,
        "status": view.state.value,
        "model": view.model,
        "created_at": _moment(view.created_at),
        "started_at": _moment(since),
        "completed_at": _moment(until),
        "progress": {
            "total_items": total,
            "completed_items": view.completed,
            "failed_items": view.failed,
            "percent": round(100.0 * view.done / total if total else 100.0 * view.state.is_terminal, 2),
        },
        "duration_seconds": round(until - since, 3) if since is not None and until is not None else None,
        "metadata": dict(view.metadata),
    }
    return {**told, "error": view.why} if view.why else told


def _documents(given: object, most: int) -> list[str]:
    if not isinstance(given, list) or not given or not all(isinstance(each, str) for each in given):
        raise InvalidJob("documents: a list of texts is needed", field="documents")
    if len(given) > most:
        raise InvalidJob(
            f"documents: {len(given):,} are too many at once, {most:,} can be taken: send several batches",
            field="documents",
        )
    return given


def _result_of(kind: JobKind, item: BatchItem) -> Any:
    if item.error is not None:
        return None
    return item.vector if kind is JobKind.EMBED else dict(item.answer or {})


async def _taken_in(batch: AsyncBatch) -> None:
    """Return when Redis has all items, so that nobody needs this process any more."""
    try:
        async with asyncio.timeout(_TAKING_SECONDS):
            while batch.view.total is None and not batch.state.is_terminal:
                await batch.refresh()
                await asyncio.sleep(_LOOK_SECONDS)
    except BaseException as error:
        with contextlib.suppress(SollolError):
            await asyncio.shield(batch.cancel())
        if isinstance(error, TimeoutError):
            raise QueueFull("Redis has no room for the batch now", retry_after=_TAKING_SECONDS) from None
        raise


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _is_id(text: str) -> bool:
    return (
        0 < len(text) <= 100
        and text.isascii()
        and text.replace("-", "").replace("_", "").replace(".", "").isalnum()
    )
