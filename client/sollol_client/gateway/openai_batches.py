"""OpenAI's /v1/batches: thousands of requests from a file, answered into another one."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from sollol_broker.batch_store import BatchStore
from sollol_broker.errand_store import Errand, ErrandStore
from sollol_broker.errors import InvalidJob
from sollol_broker.words import Priority

from .asked import take_wishes
from .body import parsed, read_body
from .caller import caller_of
from .errands import Errands
from .openai_batch_lines import ENDPOINTS, LineFault, Reader
from .openai_batch_record import KIND, OpenAIBatch, metadata_of
from .openai_files import OpenAIFiles, app_of, limit_of, page_of, ttl_of
from .refusals import Refused, UnknownModel
from .replies import json_reply
from .serving import Serving

_MOST_LISTED = 100
_WINDOW_SECONDS = 24 * 3600.0


class OpenAIBatches:
    """Answers under /v1/batches."""

    def __init__(self, serving: Serving, files: OpenAIFiles, store: ErrandStore, errands: Errands) -> None:
        self._serving = serving
        self._files = files
        self._store = store
        self._errands = errands
        self._batches = BatchStore(serving.client.session.broker)

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.all, methods=["GET"]),
            Route("/v1/batches/{id}", self.one, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, http: HttpRequest) -> Response:
        """POST /v1/batches: {"input_file_id", "endpoint", "completion_window": "24h", "metadata"?}: begin a batch."""
        given = parsed(await read_body(http, self._serving.config.max_body_bytes))
        if not isinstance(given, dict):
            raise Refused(400, "an object is needed")
        endpoint, window = given.get("endpoint"), given.get("completion_window")
        if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
            raise Refused(400, f"endpoint: one of {', '.join(ENDPOINTS)} is needed", field="endpoint")
        if window != "24h":
            raise Refused(400, "completion_window: '24h' is needed", field="completion_window")
        try:
            metadata = metadata_of(given.get("metadata"))
        except ValueError as error:
            raise Refused(400, f"metadata: {error}", field="metadata") from None
        file_id = given.get("input_file_id")
        if not isinstance(file_id, str):
            raise Refused(400, "input_file_id: the id of an uploaded file is needed", field="input_file_id")
        file = await self._files.owned(http, file_id, "input_file_id")
        wishes, _ = take_wishes({"x-sollol-priority": str(int(Priority.BATCH)), **http.headers}, {})
        created = await self._store.now_ms() / 1000
        record = OpenAIBatch(
            f"batch_{secrets.token_hex(16)}",
            file.app,
            endpoint,
            file.id,
            await self._model(http, endpoint, file_id),
            created,
            created + _WINDOW_SECONDS,
            priority=caller_of(http).priority(wishes.priority),
            metadata=metadata,
            output_ttl=ttl_of(given.get("output_expires_after"), "output_expires_after"),
        )
        await self._store.put(record.id, record.as_dict(), listed_for=file.app)
        self._errands.hurry()
        return json_reply(record.as_object())

    async def all(self, http: HttpRequest) -> Response:
        """GET /v1/batches?limit=20&after=: the caller's batches, the newest first."""
        limit = limit_of(http.query_params.get("limit", "20"), _MOST_LISTED)
        ids, after = await self._store.of(app_of(http)), http.query_params.get("after")
        if after and after not in ids:
            raise InvalidJob("after: the list has no such entry", field="after")
        behind = ids[ids.index(after) + 1 :] if after else ids
        found = await asyncio.gather(*(self._store.find(each) for each in behind[:limit]))
        shown = await asyncio.gather(*(self._object(each) for each in found if each is not None))
        return json_reply({**page_of(list(shown), None, limit), "has_more": len(behind) > limit})

    async def one(self, http: HttpRequest) -> Response:
        """GET /v1/batches/{id}: how it stands."""
        return json_reply(await self._object(await self._owned(http)))

    async def cancel(self, http: HttpRequest) -> Response:
        """POST /v1/batches/{id}/cancel: end it; what has been answered is in its output file all the same."""
        errand = await self._owned(http)
        if errand.is_over:
            raise Refused(409, f"batch {errand.id} cannot be cancelled: it is {errand.record['status']}")
        await self._store.cancel(errand.id)
        self._errands.hurry()
        cancelled = await self._store.find(errand.id)
        return json_reply(await self._object(cancelled or errand))

    async def _model(self, http: HttpRequest, endpoint: str, file_id: str) -> str:
        """The model that the first line names, if the caller may use it; "" where that line makes no sense."""
        line = await self._files.first_line(http, file_id)
        try:
            found = Reader(endpoint).read(line)
        except LineFault:
            return ""
        if found is not None and not caller_of(http).may_use(found.model):
            raise UnknownModel(found.model)
        return found.model if found is not None else ""

    async def _object(self, errand: Errand) -> dict[str, Any]:
        record = OpenAIBatch.from_dict(errand.record)
        view = None if record.is_over else await self._batches.view(record.id)
        return record.as_object(view, is_cancelled=errand.is_cancelled)

    async def _owned(self, http: HttpRequest) -> Errand:
        batch_id = http.path_params["id"]
        errand = await self._store.find(batch_id) if _is_id(batch_id) else None
        if errand is None or errand.record.get("kind") != KIND or errand.record["app"] != app_of(http):
            raise Refused(404, f"no such batch: {batch_id[:80]} has run out, or is another's", field="id")
        return errand


def _is_id(text: str) -> bool:
    return text.startswith("batch_") and len(text) <= 64 and text.isascii() and text[6:].isalnum()
