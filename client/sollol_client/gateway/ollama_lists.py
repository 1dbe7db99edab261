"""Ollama's lists: which models there are, which are in memory, on all nodes together."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sollol_broker.registry import WorkerView
from sollol_broker.version import VERSION

from .caller import Caller, caller_of
from .replies import json_reply
from .serving import Serving

# The release whose API this is. Programs read it as numbers joined by dots.
OLLAMA_VERSION = "0.33.0"
# What a node does not tell of a model.
_EVER, _NEVER = "2318-01-01T00:00:00Z", "1970-01-01T00:00:00Z"
_DETAILS = {"parent_model": "", "format": "", "family": "", "families": None, "parameter_size": "",
            "quantization_level": ""}  # fmt: skip
# Ollama's words for what a model does, and one that it has not.
_CAPABILITIES = (("chat", "completion"), ("embed", "embedding"), ("rerank", "reranking"))


class OllamaLists:
    """Answers what is known without asking a model."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/", self.root),
            Route("/api/version", self.version),
            Route("/api/tags", self.tags),
            Route("/api/ps", self.ps),
            Route("/api/status", self.status),
        ]

    async def root(self, http: HttpRequest) -> Response:
        """GET /: programs look for these very words."""
        return PlainTextResponse("Ollama is running")

    async def version(self, http: HttpRequest) -> Response:
        """GET /api/version."""
        return json_reply({"version": OLLAMA_VERSION, "sollol": VERSION})

    async def status(self, http: HttpRequest) -> Response:
        """GET /api/status: no model is anybody else's."""
        return json_reply({"cloud": {"disabled": True, "source": "config"}})

    async def tags(self, http: HttpRequest) -> Response:
        """GET /api/tags: the models of all nodes, newest first."""
        found = models_of(await self._workers(), caller_of(http))
        entries = sorted(found.values(), key=lambda each: str(each["modified_at"]), reverse=True)
        return json_reply({"models": entries})

    async def ps(self, http: HttpRequest) -> Response:
        """GET /api/ps: the models in memory anywhere."""
        return json_reply({"models": loaded_of(await self._workers(), caller_of(http))})

    async def _workers(self) -> list[WorkerView]:
        return [each for each in await self._serving.client.session.registry.workers() if each.state == "up"]


def models_of(workers: list[WorkerView], caller: Caller) -> dict[str, dict[str, Any]]:
    """The entries of /api/tags by canonical name, with the nodes that serve each."""
    found: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for name, info in worker.models.items():
            if not caller.may_use(name):
                continue
            entry = found.setdefault(name, _entry(name, info))
            if worker.node not in entry["_sollol"]["nodes"]:
                entry["_sollol"]["nodes"].append(worker.node)
    return found


def loaded_of(workers: list[WorkerView], caller: Caller) -> list[dict[str, Any]]:
    """The entries of /api/ps, with the nodes that have each in memory."""
    found: dict[str, dict[str, Any]] = {}
    for worker in workers:
        for name, info in worker.models.items():
            if not info["loaded"] or not caller.may_use(name):
                continue
            entry = found.get(name)
            if entry is None:
                listed = _entry(name, info)
                details = {**_DETAILS, **{n: v for n, v in listed["details"].items() if n in _DETAILS}}
                entry = found[name] = {
                    **{part: listed[part] for part in ("name", "model", "size", "digest")},
                    "details": details,
                    "expires_at": _EVER,
                    "size_vram": listed["size"],
                    "context_length": info["context_tokens"],
                    "_sollol": {"nodes": []},
                }
            if worker.node not in entry["_sollol"]["nodes"]:
                entry["_sollol"]["nodes"].append(worker.node)
    return list(found.values())


def full_name(name: str) -> str:
    """With its tag, as Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _entry(name: str, info: dict[str, Any]) -> dict[str, Any]:
    told = info.get("listing") or {}
    shown = told.get("name") or full_name(name)
    capabilities = info.get("capabilities") or [word for kind, word in _CAPABILITIES if kind in info["kinds"]]
    details = {**_DETAILS, **(told.get("details") or {})}
    if info["context_tokens"]:
        details.setdefault("context_length", info["context_tokens"])
    return {
        "name": shown,
        "model": shown,
        "modified_at": told.get("modified_at") or _NEVER,
        "size": info["size_bytes"],
        "digest": told.get("digest") or "",
        "details": details,
        "capabilities": list(capabilities),
        "_sollol": {"nodes": []},
    }
