"""Rankings, how well texts answer a query: in the shape of Jina, Cohere, vLLM and llama-server, and in TEI's."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from sollol_broker.words import JobKind

from ..answer import Answer
from .asked import Asked
from .body import parsed, read_body
from .openai_fields import INTEGER, LIST, TEXT, YES_NO, fields_of, model_of
from .refusals import Refused
from .replies import json_reply, routing_of
from .serving import Serving

RERANK_PATH = "/v1/rerank"
_OTHER_PATHS = ("/v1/reranking", "/v2/rerank", "/rerank", "/reranking")
# What the fields of a body have to be; others may be anything.
RERANK_FIELDS = {
    "model": TEXT,
    "query": TEXT,
    "documents": LIST,
    "top_n": INTEGER,
    "return_documents": YES_NO,
}
# TEI calls the documents so, and answers with a bare list.
_TEI_FIELDS = {**RERANK_FIELDS, "texts": LIST, "return_text": YES_NO}
_OURS = frozenset({"model", "query", "documents", "texts", "return_documents", "return_text"})


class Rerank:
    """Answers what those APIs answer."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Its paths."""
        others = [
            Route(path, self.rerank, methods=["POST"], include_in_schema=False) for path in _OTHER_PATHS
        ]
        return [Route(RERANK_PATH, self.rerank, methods=["POST"]), *others]

    async def rerank(self, http: HttpRequest) -> Response:
        """POST /v1/rerank."""
        body = parsed(await read_body(http, self._serving.config.max_body_bytes))
        asked = rerank_asked(body)
        assert isinstance(body, dict)  # noqa: S101  # else it would have been refused
        documents = asked.payload["documents"]
        async with await self._serving.run(http, asked) as running:
            answer = await running.answer()
        reply = tei_reply(body, documents, answer) if _is_tei(body) else rerank_reply(body, documents, answer)
        if isinstance(reply, dict):
            reply["id"] = f"rerank-{running.id}"
        return json_reply(reply, headers=running.headers())


def rerank_asked(body: object) -> Asked:
    """From the body of /v1/rerank.

    Raises:
        Refused: 400, it makes no sense.
    """
    given = fields_of(body, _TEI_FIELDS)
    model = model_of(given)
    if "query" not in given:
        raise Refused(400, "query is required", field="query")
    field = "texts" if _is_tei(given) else "documents"
    documents = [_text_of(each) for each in given.get(field) or ()]
    if not documents or None in documents:
        raise Refused(400, f"{field}: a list of texts is needed, one at least", field=field)
    payload = {name: value for name, value in given.items() if name not in _OURS}
    return Asked(JobKind.RERANK, model, {**payload, "documents": documents}, submit={"query": given["query"]})


def rerank_reply(body: dict[str, Any], documents: list[str], answer: Answer) -> dict[str, Any]:
    """The answer as Jina has it, best first."""
    tokens = int(answer.get("prompt_eval_count") or 0)
    results = answer.results
    if body.get("return_documents"):
        results = [{**each, "document": {"text": documents[each["index"]]}} for each in results]
    return {
        "object": "list",
        "model": body["model"],
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "_sollol_routing": routing_of(answer),
    }


def tei_reply(body: dict[str, Any], documents: list[str], answer: Answer) -> list[dict[str, Any]]:
    """The answer as TEI has it, best first."""
    found = [{"index": each["index"], "score": each["relevance_score"]} for each in answer.results]
    if body.get("return_text"):
        found = [{**each, "text": documents[each["index"]]} for each in found]
    return found


def _is_tei(body: dict[str, Any]) -> bool:
    return body.get("texts") is not None and body.get("documents") is None


def _text_of(document: object) -> str | None:
    """Some clients wrap each text into an object."""
    text = document.get("text") if isinstance(document, dict) else document
    return text if isinstance(text, str) else None
