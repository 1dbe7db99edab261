"""Answers in the shape that SOLLOL's own names give: Ollama's dict, and where it came from in "_sollol_routing"."""

from __future__ import annotations

from typing import Any

from sollol_client import Answer

# Prompts up to so many tokens count as simple, and as medium.
_SIMPLE_TOKENS, _MEDIUM_TOKENS = 500, 2000


def with_routing(answer: Answer, *, mode: str = "fabric") -> dict[str, Any]:
    """The answer as a plain dict with "_sollol_routing".

    It holds `host`, `node` and `selected_host` (the node, three times, under the names that were in use), `task_type`,
    `score` (1 = no node would have been faster), `complexity` ("simple", "medium", "complex", by the prompt's length),
    `mode`, and all fields of `Routing` (`sollol explain` has the whole story).

    Args:
        mode: how the model was reached: "fabric", or "rpc" for a group of nodes.
    """
    routing = answer.routing
    tokens = answer.get("prompt_eval_count") or 0
    complexity = "simple" if tokens <= _SIMPLE_TOKENS else "medium" if tokens <= _MEDIUM_TOKENS else "complex"
    told = {
        **routing.as_dict(),
        "host": routing.node,
        "selected_host": routing.node,
        "complexity": complexity,
        "mode": mode,
    }
    return {**answer, "_sollol_routing": told}
