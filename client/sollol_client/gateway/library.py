"""Ollama's calls about models: show one; pull, push, create, copy and delete on nodes, for admins."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sollol_broker.errors import BackendError, SollolError
from sollol_broker.names import canonical_model
from sollol_broker.registry import NodeView

from ..model_calls import call_models
from .body import parsed, read_body
from .caller import caller_of
from .library_rules import Target, named, shown, targets
from .ollama_checks import check_fields
from .ollama_lists import full_name, models_of
from .refusals import Refused, refusal_of
from .replies import as_json, json_reply
from .serving import Serving

_STRUCTS = {"/api/show": "ShowRequest", "/api/pull": "PullRequest", "/api/push": "PushRequest",
            "/api/create": "CreateRequest", "/api/copy": "CopyRequest", "/api/delete": "DeleteRequest"}  # fmt: skip


class Library:
    """Answers what is asked about models, by asking the nodes that hold them."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Its paths."""
        streams = [
            Route(f"/api/{each}", self.streamed, methods=["POST"]) for each in ("pull", "push", "create")
        ]
        return [
            Route("/api/show", self.show, methods=["POST"]),
            *streams,
            Route("/api/copy", self.plain, methods=["POST"]),
            Route("/api/delete", self.plain, methods=["DELETE"]),
            Route("/api/blobs/{digest}", self.blobs, methods=["HEAD", "POST"]),
        ]

    async def show(self, http: HttpRequest) -> Response:
        """POST /api/show: from a node that has the model; where its server does not tell, what the fabric knows."""
        body = await self._body(http)
        name = named(body)
        unknown = Refused(404, f"model '{full_name(name)}' not found", field="model")
        found = await self._nodes()
        key = canonical_model(name)
        entry = models_of([each for node in found for each in node.workers], caller_of(http)).get(key)
        if entry is None:
            raise unknown
        for target in targets("/api/show", body, found, ()):
            with contextlib.suppress(BackendError):
                async for line in self._call(target, "/api/show", body):
                    return json_reply({**line, "_sollol": {"nodes": [target.node]}})
        return json_reply(shown(entry))

    async def streamed(self, http: HttpRequest) -> Response:
        """POST /api/pull, /api/push, /api/create: on one node after the other, with what each says."""
        path, body = http.url.path, await self._body(http)
        if path == "/api/create" and not (body.get("from") or body.get("files")):
            raise Refused(400, "neither 'from' or 'files' was specified")
        chosen = await self._targets(http, path, body)
        if body.get("stream") is not False:
            return StreamingResponse(self._lines(chosen, path, body), media_type="application/x-ndjson")
        last: dict[str, Any] = {}
        for target in chosen:
            async for line in self._call(target, path, {**body, "stream": False}):
                last = line
        return json_reply(last)

    async def plain(self, http: HttpRequest) -> Response:
        """POST /api/copy, DELETE /api/delete: on each node that has the model."""
        path, body = http.url.path, await self._body(http)
        for target in await self._targets(http, path, body):
            async for _ in self._call(target, path, body):
                pass
        return Response(status_code=200)

    async def blobs(self, http: HttpRequest) -> Response:
        """HEAD, POST /api/blobs/…: none is ever there, since files are not sent through Redis."""
        if http.method == "HEAD":
            is_digest = re.fullmatch(r"sha256[:-][0-9a-f]{64}", http.path_params["digest"])
            return json_reply({}, 404 if is_digest else 400)
        raise Refused(
            501,
            "files of models do not travel through the fabric: run `ollama create` on the node itself, or create the "
            "model from one that is there ('from'), or let nodes pull it",
        )

    async def _lines(
        self, chosen: Sequence[Target], path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[bytes]:
        """What all of them say; "success" once, when all have had it."""
        last: dict[str, Any] = {"status": "success"}
        try:
            for target in chosen:
                async for line in self._call(target, path, body):
                    if line.get("status") == "success":
                        last = line
                        continue
                    yield as_json({**line, "_sollol_node": target.node}) + b"\n"
                    if "error" in line:
                        return
            yield as_json(last) + b"\n"
        except SollolError as error:
            yield as_json({"error": refusal_of(error).text}) + b"\n"

    async def _call(
        self, target: Target, path: str, body: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.aclosing(
            call_models(self._serving.client.session, target.worker, path, body)
        ) as lines:
            async for line in lines:
                yield line

    async def _targets(self, http: HttpRequest, path: str, body: Mapping[str, Any]) -> list[Target]:
        wanted = [each.strip() for each in http.headers.get("x-sollol-node", "").split(",") if each.strip()]
        named(body, path)
        return targets(path, body, await self._nodes(), wanted)

    async def _body(self, http: HttpRequest) -> dict[str, Any]:
        body = parsed(await read_body(http, self._serving.config.max_body_bytes))
        return check_fields(body, _STRUCTS[http.url.path])

    async def _nodes(self) -> list[NodeView]:
        return await self._serving.client.nodes()
