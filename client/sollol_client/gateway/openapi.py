"""The gateway's OpenAPI document, made of its routes and of what its own checks know of each body. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from sollol_broker.version import VERSION

from .anthropic_translate import MESSAGE_FIELDS
from .ollama_checks import FIELDS
from .openai_fields import INTEGER, LIST, NUMBER, OBJECT, TEXT, YES_NO
from .openai_translate import CHAT_FIELDS, COMPLETION_FIELDS, EMBED_FIELDS
from .rerank import RERANK_FIELDS, RERANK_PATH
from .responses_translate import RESPONSE_FIELDS
from .roles import role_for

# The types of fields, as our checks call them (OpenAI's and Anthropic's in words, Ollama's in Go's) and as JSON Schema.
_TYPES: dict[str, dict[str, Any]] = {
    NUMBER: {"type": "number"},
    INTEGER: {"type": "integer"},
    TEXT: {"type": "string"},
    YES_NO: {"type": "boolean"},
    LIST: {"type": "array", "items": {"type": "object"}},
    OBJECT: {"type": "object"},
    "string": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "[]int": {"type": "array", "items": {"type": "integer"}},
    "[]api.ImageData": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
    "map[string]interface {}": {"type": "object"},
}
_ANY_LIST: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
_TEXTS: dict[str, Any] = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_MESSAGES: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": {"type": "string"}},
        "required": ["role", "content"],
    },
}
# What a type alone does not tell.
_CLOSER: dict[str, dict[str, Any]] = {
    "messages": _MESSAGES,
    "input": _TEXTS,
    "stop": _TEXTS,
    "stop_sequences": {"type": "array", "items": {"type": "string"}},
    "documents": {"type": "array", "items": {"type": "string"}, "minItems": 1},
}
# The bodies: their fields, and those that must be there.
_BODIES: dict[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "/v1/chat/completions": (CHAT_FIELDS, ("model", "messages")),
    "/v1/completions": ({**COMPLETION_FIELDS, "prompt": TEXT}, ("model", "prompt")),
    "/v1/responses": ({**RESPONSE_FIELDS, "input": TEXT}, ("model", "input")),
    "/v1/embeddings": ({**EMBED_FIELDS, "input": TEXT}, ("model", "input")),
    RERANK_PATH: (RERANK_FIELDS, ("model", "query", "documents")),
    "/v1/messages": (MESSAGE_FIELDS, ("model", "messages", "max_tokens")),
    "/api/chat": (FIELDS["ChatRequest"], ("model",)),
    "/api/generate": (FIELDS["GenerateRequest"], ("model",)),
    "/api/embed": ({**FIELDS["EmbedRequest"], "input": "string"}, ("model", "input")),
    "/api/embeddings": (FIELDS["EmbeddingRequest"], ("model", "prompt")),
    "/api/show": (FIELDS["ShowRequest"], ("model",)),
    "/api/pull": (FIELDS["PullRequest"], ("model",)),
    "/api/push": (FIELDS["PushRequest"], ("model",)),
    "/api/create": (FIELDS["CreateRequest"], ("model",)),
    "/api/copy": (FIELDS["CopyRequest"], ("source", "destination")),
    "/api/delete": (FIELDS["DeleteRequest"], ("model",)),
    "/v1/batches": (
        {"input_file_id": TEXT, "endpoint": TEXT, "completion_window": TEXT, "metadata": OBJECT},
        ("input_file_id", "endpoint", "completion_window"),
    ),
    "/api/batch/embed": (
        {"model": TEXT, "documents": LIST, "metadata": OBJECT, "webhook": TEXT, "priority": INTEGER},
        ("model", "documents"),
    ),
    "/api/jobs": (
        {
            "model": TEXT,
            "chat": LIST,
            "generate": TEXT,
            "embed": TEXT,
            "rerank": LIST,
            "query": TEXT,
            "stream": YES_NO,
            "priority": INTEGER,
        },
        ("model",),
    ),
}

# Bodies that are forms.
_FORMS: dict[str, dict[str, Any]] = {
    "/v1/files": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
        "required": ["file", "purpose"],
    }
}


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document that tells of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
                paths.setdefault(path, {})[method.lower()] = _operation(path, method, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "SOLLOL gateway", "version": VERSION},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(path: str, method: str, route: Route) -> dict[str, Any]:
    says = (getattr(route.endpoint, "__doc__", None) or "").split("\n", 1)[0]
    operation: dict[str, Any] = {
        "summary": says.partition(": ")[2] or says,
        "security": [] if role_for(path) is None else [{"key": []}, {}],
        "responses": {
            "200": {"description": "the answer; a stream of it where one was asked for"},
            "default": {"description": "an error, in the shape of the path's API"},
        },
    }
    if names := re.findall(r"\{(\w+)\}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if path in _FORMS and method == "POST":
        operation["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FORMS[path]}},
        }
    if path in _BODIES and method in ("POST", "DELETE"):
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(*_BODIES[path])}},
        }
    return operation


def _schema(fields: Mapping[str, str], required: Sequence[str]) -> dict[str, Any]:
    properties = {name: _CLOSER.get(name) or _TYPES.get(kind, _ANY_LIST) for name, kind in fields.items()}
    return {"type": "object", "properties": properties, "required": list(required)}
