"""How fast a model runs here: learned from what the backend reports after each job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# Weight of the newest job. About the last eight jobs count; a node that slows down is believed soon.
_NEW = 0.2
# Before anything is known: a small GPU's figures, so that an unknown node is tried, neither shunned nor flooded.
_PRIOR_PROMPT_MS = 1.0
_PRIOR_OUTPUT_MS = 20.0
_PRIOR_LOAD_MS = 4000.0
# A local SSD.
_LOAD_BYTES_PER_MS = 1_000_000.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What one model costs on this node: ms per prompt token, ms per output token, ms to load."""

    prompt_ms: float = _PRIOR_PROMPT_MS
    output_ms: float = _PRIOR_OUTPUT_MS
    load_ms: float = _PRIOR_LOAD_MS

    @classmethod
    def prior(cls, size_bytes: int) -> Pace:
        """Before the first job: only the time to read `size_bytes` from disk is known."""
        return cls(load_ms=_PRIOR_LOAD_MS + size_bytes / _LOAD_BYTES_PER_MS)

    def after(self, fields: Mapping[str, Any]) -> Pace:
        """The pace with one more job counted in; `fields` are Ollama's closing fields (durations in ns)."""
        learned = {}
        for name, count, duration in (
            ("prompt_ms", "prompt_eval_count", "prompt_eval_duration"),
            ("output_ms", "eval_count", "eval_duration"),
        ):
            tokens, took_ns = fields.get(count) or 0, fields.get(duration) or 0
            if tokens > 0 and took_ns > 0:
                learned[name] = (1 - _NEW) * getattr(self, name) + _NEW * took_ns / 1e6 / tokens
        return replace(self, **learned)
