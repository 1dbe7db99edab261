"""Which nodes a call about models goes to, and what is shown of a model whose server does not tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sollol_broker.names import canonical_model
from sollol_broker.registry import NodeView, WorkerView

from .ollama_checks import check_name
from .refusals import Refused

# What has to be on a node before the call makes sense there.
_SOURCE = {"/api/copy": "source", "/api/create": "from"}


@dataclass(frozen=True, slots=True)
class Target:
    """A worker whose LLM server manages its own models."""

    node: str
    worker: WorkerView


def named(body: Mapping[str, Any], path: str = "") -> str:
    """The model that a call names.

    Raises:
        Refused: 400, none, or what cannot be one.
    """
    if path == "/api/copy":
        check_name(str(body.get("destination") or ""))
        return check_name(str(body.get("source") or ""))
    name = body.get("model") or body.get("name")
    if not name:
        raise Refused(400, "model is required", field="model")
    return check_name(str(name))


def targets(
    path: str, body: Mapping[str, Any], nodes: Sequence[NodeView], wanted: Sequence[str]
) -> list[Target]:
    """Where a call goes.

    1. Only to workers with an Ollama: nothing else manages its models.
    2. `wanted` names the nodes; "*" = all of them.
    3. What a node must have to begin with, it has: delete, copy and create go to each such node, show and push to one.
    4. A pull goes to the node with the most memory for models.

    Raises:
        Refused: 404 where no node has what is needed, 501 where none could do it.
    """
    able = [
        Target(node.name, worker) for node in nodes for worker in node.workers if _has_ollama(worker)
    ]  # 1
    if path == "/api/show":
        return _holding(able, path, body)[:1]
    if not able:
        raise Refused(501, "no node has an LLM server that manages its own models: only Ollama does")
    if wanted and "*" not in wanted:  # 2
        if missing := set(wanted) - {each.node for each in able}:
            raise Refused(404, f"no node with an Ollama is called {', '.join(sorted(missing))}")
        able = [each for each in able if each.node in wanted]
    if path == "/api/pull":  # 4
        sizes = {node.name: _memory(node) for node in nodes}
        return able if wanted else [max(able, key=lambda each: (sizes[each.node], each.node))]
    holding = _holding(able, path, body)  # 3
    if path == "/api/create" and not body.get("from"):
        holding = able
    if not holding:
        quote = '"' if path == "/api/copy" else "'"
        raise Refused(404, f"model {quote}{_source(path, body)}{quote} not found", field="model")
    return holding[:1] if path == "/api/push" else holding


def shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What /api/show tells of a model from its entry in the list."""
    details = dict(entry["details"])
    architecture = details.get("family") or "unknown"
    facts: dict[str, Any] = {"general.architecture": architecture}
    if context := details.pop("context_length", 0):
        facts[f"{architecture}.context_length"] = context
    return {
        "modelfile": f"FROM {entry['name']}\n",
        "parameters": "",
        "template": "",
        "details": details,
        "model_info": facts,
        "capabilities": entry["capabilities"],
        "modified_at": entry["modified_at"],
        "_sollol": entry["_sollol"],
    }


def _holding(able: Sequence[Target], path: str, body: Mapping[str, Any]) -> list[Target]:
    source = _source(path, body)
    if not source:
        return []
    key = canonical_model(source)
    return [each for each in able if _manages(each.worker, key)]


def _source(path: str, body: Mapping[str, Any]) -> str:
    field = _SOURCE.get(path, "model")
    return str(body.get(field) or (body.get("name") if field == "model" else "") or "")


def _has_ollama(worker: WorkerView) -> bool:
    is_there = any(each["kind"] == "ollama" and not each["down"] for each in worker.backends)
    return is_there and worker.state != "draining"


def _manages(worker: WorkerView, key: str) -> bool:
    """Whether a model of a worker is one of its Ollama's: nothing else gives a digest."""
    return bool(worker.models.get(key, {}).get("listing", {}).get("digest"))


def _memory(node: NodeView) -> tuple[int, int]:
    """Of its GPUs, then of itself, in MiB."""
    ram = node.hardware.get("ram") or {}
    return int(node.hardware.get("vram_total_mib") or 0), int(ram.get("total_mib") or 0)
