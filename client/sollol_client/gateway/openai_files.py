"""OpenAI's /v1/files: the input of batches, kept in Redis for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sollol_broker.errors import InvalidJob
from sollol_broker.file_store import FileStore, StoredFile, Upload

from .caller import caller_of
from .multipart import Multipart, Part
from .refusals import Refused
from .replies import json_reply
from .serving import Serving

_HOUR, _DAY = 3600, 24 * 3600
_USUAL_TTL_SECONDS = 7 * _DAY
_LEAST_TTL_SECONDS, _MOST_TTL_SECONDS = _HOUR, 30 * _DAY
_MOST_FIELD_BYTES = 1000
_MOST_LISTED = 10_000
_PURPOSES = ("batch", "batch_output")


class OpenAIFiles:
    """Answers under /v1/files."""

    def __init__(self, serving: Serving, store: FileStore) -> None:
        self._serving = serving
        self._store = store

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.all, methods=["GET"]),
            Route("/v1/files/{id}", self.one, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
        ]

    async def upload(self, http: HttpRequest) -> Response:
        """POST /v1/files: the input of a batch as multipart/form-data: `purpose`, `file`, `expires_after`."""
        body = Multipart(http.headers.get("content-type", ""))
        upload = await self._store.begin(app_of(http))
        try:
            record = await self._taken(http, body, upload)
        except BaseException as error:
            await asyncio.shield(self._store.drop(upload.record))
            if isinstance(error, ClientDisconnect):
                raise Refused(499, "the client left before it had sent its file") from None
            raise
        return json_reply(file_object(record))

    async def all(self, http: HttpRequest) -> Response:
        """GET /v1/files?limit=&after=&order=&purpose=: the caller's files."""
        query = http.query_params
        found = [file_object(each) for each in await self._store.all(app_of(http))]
        if purpose := query.get("purpose"):
            found = [each for each in found if each["purpose"] == purpose]
        if query.get("order", "desc") == "desc":
            found.reverse()
        return json_reply(
            page_of(found, query.get("after"), limit_of(query.get("limit", "10000"), _MOST_LISTED))
        )

    async def one(self, http: HttpRequest) -> Response:
        """GET /v1/files/{id}: its record."""
        return json_reply(file_object(await self.owned(http, http.path_params["id"])))

    async def delete(self, http: HttpRequest) -> Response:
        """DELETE /v1/files/{id}: delete it; a batch that reads it ends early."""
        record = await self.owned(http, http.path_params["id"])
        await self._store.drop(record)
        return json_reply({"id": record.id, "object": "file", "deleted": True})

    async def content(self, http: HttpRequest) -> Response:
        """GET /v1/files/{id}/content: what is in it."""
        record = await self.owned(http, http.path_params["id"])
        headers = {"Content-Length": str(record.bytes)}
        return StreamingResponse(
            self._store.read(record), headers=headers, media_type="application/octet-stream"
        )

    async def owned(self, http: HttpRequest, file_id: str, field: str = "id") -> StoredFile:
        """The record of a file of the caller's.

        Raises:
            Refused: 404, it has no such file.
        """
        record = await self._store.find(file_id, app_of(http))
        if record is None:
            raise Refused(
                404, f"no such file: {file_id[:80]} has run out, was deleted, or is another's", field=field
            )
        return record

    async def first_line(self, http: HttpRequest, file_id: str) -> bytes:
        """The first line of a file of the caller's that is not empty; b"" = there is none."""
        async with aclosing(self._store.lines(await self.owned(http, file_id))) as lines:
            async for line in lines:
                if line.strip():
                    return line
        return b""

    async def _taken(self, http: HttpRequest, body: Multipart, upload: Upload) -> StoredFile:
        fields: dict[str, bytes] = {}
        name, most = None, self._serving.config.max_file_bytes
        part = Part("")
        async for piece in _pieces(http, body):
            if isinstance(piece, Part):
                part = piece
                if part.name == "file":
                    if name is not None:
                        raise Refused(400, "file: one file is taken at a time", field="file")
                    name = part.file_name or "file"
            elif part.name == "file":
                if upload.size + len(piece) > most:
                    raise Refused(
                        413, f"file: it has more than {most:,} bytes; make several of it", field="file"
                    )
                await upload.write(piece)
            else:
                fields[part.name] = fields.get(part.name, b"") + piece
                if len(fields) > 20 or len(fields[part.name]) > _MOST_FIELD_BYTES:
                    raise Refused(400, f"{part.name[:80]}: too long", field=part.name[:80])
        if name is None:
            raise Refused(400, "file: a file is needed", field="file")
        purpose = fields.get("purpose", b"").decode("utf-8", "replace")
        if purpose != "batch":
            raise Refused(
                400, "purpose: files are taken for batches only: 'batch' is needed", field="purpose"
            )
        seconds = fields.get("expires_after[seconds]")
        asked = None if seconds is None else {"seconds": seconds.decode("utf-8", "replace")}
        return await upload.close(name[:200], ttl_of(asked, "expires_after"), {"purpose": purpose})


def app_of(http: HttpRequest) -> str:
    """Whose files and batches a caller's are."""
    return caller_of(http).app(http.headers.get("x-sollol-app"))


def file_object(record: StoredFile) -> dict[str, Any]:
    """A file as OpenAI's clients know it."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": int(record.created),
        "expires_at": int(record.expires),
        "filename": record.name,
        "purpose": record.more.get("purpose", "batch"),
        "status": "processed",
    }


def page_of(entries: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A page of a list, behind the entry `after`.

    Raises:
        InvalidJob: there is no such entry.
    """
    if after:
        ids = [each["id"] for each in entries]
        if after not in ids:
            raise InvalidJob("after: the list has no such entry", field="after")
        entries = entries[ids.index(after) + 1 :]
    shown = entries[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(entries) > limit}


def limit_of(text: str, most: int, field: str = "limit") -> int:
    """How many to list; or another number from 1 on.

    Raises:
        InvalidJob: no number from 1 to `most`.
    """
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= most:
        raise InvalidJob(f"{field}: a number from 1 to {most:,} is needed", field=field)
    return int(text)


async def _pieces(http: HttpRequest, body: Multipart) -> AsyncIterator[Part | bytes]:
    async for data in http.stream():
        for piece in body.feed(data):
            yield piece
    if not body.is_over:
        raise Refused(400, "the multipart body is malformed: it ends before its last boundary", field="file")


def ttl_of(given: object, field: str) -> float:
    """For how many seconds a file shall live, by {"anchor": "created_at", "seconds"}.

    Raises:
        Refused: 400, it is something else.
    """
    if given is None:
        return _USUAL_TTL_SECONDS
    seconds = given.get("seconds") if isinstance(given, Mapping) else None
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit():
        seconds = int(seconds[:9])
    if isinstance(seconds, int) and _LEAST_TTL_SECONDS <= seconds <= _MOST_TTL_SECONDS:
        return float(seconds)
    raise Refused(
        400, f"{field}: {_LEAST_TTL_SECONDS} to {_MOST_TTL_SECONDS} seconds are possible", field=field
    )
