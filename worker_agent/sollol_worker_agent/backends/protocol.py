"""What the agent asks of an LLM server, whatever its make.

Requests and answers carry Ollama's field names: they are the house's own format, and each backend
translates them to its server's. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a backend can serve.

    Attributes:
        name: as the server names it, e.g. "llama3.2:latest".
        kinds: what may be asked of it, out of {"chat", "generate", "embed"}.
        size_bytes: its weights on disk; 0 when the server does not say.
        context_tokens: the most tokens a request may use; 0 when unknown.
        capabilities: the server's own words ("tools", "vision", "thinking", …).
    """

    name: str
    kinds: frozenset[str] = frozenset({"chat", "generate", "embed"})
    size_bytes: int = 0
    context_tokens: int = 0
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The four timeouts of a backend call, in seconds; 0 means no limit."""

    connect: float = 5.0
    # Loading a 40 GB model from a slow disk takes minutes, and the server is silent meanwhile.
    first_token: float = 300.0
    between_tokens: float = 60.0
    total: float = 1800.0


@dataclass(frozen=True, slots=True)
class Piece:
    """What a server says while it generates. Texts are what is new since the last piece."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The protocol's own end mark. Without it an answer is truncated, whatever came before.

    Attributes:
        fields: Ollama's closing fields: done_reason, total_duration, load_duration,
            prompt_eval_count, prompt_eval_duration, eval_count, eval_duration (ns), context.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings: one vector per input, in order, and Ollama's closing fields."""

    vectors: Sequence[Sequence[float]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """An LLM server. All methods raise BackendError, and nothing else, when the server fails.

    `request` is the job's payload with Ollama's names: `messages` (chat), `prompt` (generate) or
    `input` (embed), and `options`, `format`, `tools`, `think`, `keep_alive`, … as the user gave them;
    fields that a backend does not know are passed on untouched. A generator that is closed early
    closes its connection, which frees the server's slot.
    """

    kind: str
    url: str

    async def models(self) -> list[ModelInfo]:
        """What the server can serve."""

    async def loaded(self) -> frozenset[str]:
        """Names of the models that are in memory now."""

    async def slots(self) -> int:
        """How many requests it works on at once; 0 when it does not say."""

    async def version(self) -> str:
        """The server's release as it tells it, such as "0.33.0" or "b10068-3f1b2c4"; "" when it does not say."""

    def chat(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> AsyncIterator[Piece | End]:
        """Answer `messages`; yields pieces, then exactly one End."""

    def generate(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncIterator[Piece | End]:
        """Continue `prompt`; yields pieces, then exactly one End."""

    async def embed(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Vectors:
        """Embed `input` (a string or a list of strings)."""

    async def warm(self, model: str) -> None:
        """Bring `model` into memory."""

    async def unload(self, model: str) -> None:
        """Put `model` out of memory."""

    async def close(self) -> None:
        """Close all connections."""
