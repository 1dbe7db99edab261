"""What the agent asks of an LLM server, whatever its make.

Requests and answers carry Ollama's field names: they are the house's own format, and each backend
translates them to its server's. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sollol_broker.errors import BackendError
from sollol_broker.words import JobKind


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a backend can serve.

    Attributes:
        name: as the server names it, e.g. "llama3.2:latest".
        kinds: what may be asked of it, out of {"chat", "generate", "embed", "rerank"}.
        size_bytes: its weights on disk; 0 when the server does not say.
        context_tokens: the most tokens a request may use; 0 when unknown.
        capabilities: the server's own words ("tools", "vision", "thinking", …).
        continues: whether it can go on with an answer that another server began; None = not tried yet.
        listing: what lists of models show besides, with Ollama's names: modified_at, digest, details, …
    """

    name: str
    kinds: frozenset[str] = frozenset({"chat", "generate", "embed"})
    size_bytes: int = 0
    context_tokens: int = 0
    capabilities: tuple[str, ...] = ()
    continues: bool | None = None
    listing: Mapping[str, Any] = field(default_factory=dict, hash=False)


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
    """What a server says while it generates. Texts are what is new since the last piece.

    Attributes:
        tokens: that it took; where a server does not say, one.
        ids: of those tokens, where the server tells; empty = not known.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    tokens: int = 1
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer has said so far, in whole pieces."""

    pieces: tuple[Piece, ...] = ()

    @property
    def text(self) -> str:
        """The text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> int:
        """How many tokens that took, at least."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all its tokens; empty = not known."""
        ids = tuple(each for piece in self.pieces for each in piece.ids)
        return ids if len(ids) == self.tokens else ()


class CannotContinue(Exception):
    """A server cannot go on with what another has begun; the text says why. Nothing new has been said yet."""


class TextLost(BackendError):
    """What was shown of an answer can be gone on with neither here nor, unless it is retryable, elsewhere.

    No backend is to blame.
    """


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


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well each document answers a query: (its index, its score), best first, and Ollama's closing fields."""

    results: Sequence[tuple[int, float]]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has gone to a server so far.

    Attributes:
        requests: that were answered, tries that failed left out. connections: opened for them; the others went over
            open ones. again: sent a second time, for the open connection turned out to be closed.
    """

    requests: int = 0
    connections: int = 0
    again: int = 0


class Backend(Protocol):
    """An LLM server. All methods raise BackendError, and nothing else, when the server fails.

    `request` is the job's payload with Ollama's names: `messages` (chat), `prompt` (generate),
    `input` (embed) or `query` and `documents` (rerank), and `options`, `format`, `tools`, `think`,
    `keep_alive`, … as the user gave them; fields that a backend does not know are passed on untouched.
    A generator that is closed early closes its connection, which frees the server's slot.
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

    @property
    def traffic(self) -> Traffic:
        """What has gone to the server so far."""

    def chat(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> AsyncIterator[Piece | End]:
        """Answer `messages`; yields pieces, then exactly one End."""

    def generate(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncIterator[Piece | End]:
        """Continue `prompt`; yields pieces, then exactly one End."""

    def resume(
        self, kind: JobKind, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncIterator[Piece | End]:
        """Go on with the answer to a chat or generate request; yields what comes after `said`, then one End.

        Raises:
            CannotContinue: before the first piece, where going on would not be the same as never having stopped.
        """

    async def embed(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Vectors:
        """Embed `input` (a string or a list of strings)."""

    async def rerank(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Ranking:
        """Say how well each of `documents` answers `query`; at most `top_n` of them, where that is given."""

    async def warm(self, model: str, request: Mapping[str, Any]) -> None:
        """Bring `model` into memory as `request` (keep_alive, options) says; {} = as the server usually does."""

    async def unload(self, model: str) -> None:
        """Put `model` out of memory."""

    async def close(self) -> None:
        """Close all connections."""
