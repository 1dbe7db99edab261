"""A backend without a model: it answers with what it was told. For benchmarks of the fabric only.

What a benchmark measures with it is everything except the LLM server. Never use it to answer users.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sollol_broker.errors import BackendError
from sollol_broker.words import JobKind
from sollol_worker_agent.backends.protocol import (
    CannotContinue,
    End,
    ModelInfo,
    Piece,
    Ranking,
    Said,
    Timeouts,
    Traffic,
    Vectors,
)

# Small enough not to weigh on what is measured, large enough to tell texts apart.
_DIMENSIONS = 8
# What models do, by a word in their names; the first counts.
_KINDS = (
    ("embed", frozenset({"embed"})),
    ("rerank", frozenset({"rerank"})),
    ("", frozenset({"chat", "generate"})),
)


@dataclass(frozen=True, slots=True)
class EchoSettings:
    """What an echo:// URL says.

    Attributes:
        slots: how many requests it claims to work on at once.
        delay_ms: silence before the first piece.
        tokens: how many words to answer with; 0 echoes the whole text in one piece.
        token_ms: pause between two words.
        models: the names it answers to; those with "embed" in them embed, those with "rerank" rerank, the others
            do the rest.
    """

    slots: int = 64
    delay_ms: float = 0.0
    tokens: int = 0
    token_ms: float = 0.0
    models: tuple[str, ...] = ("echo", "echo-embed")


class EchoBackend:
    """Answers with the last message, at once.

    Args:
        url: "echo://" or, for instance, "echo://?slots=64&delay_ms=5&tokens=16&token_ms=2&models=echo".
        sleep: how to let time pass; a test may hand in its own.

    Raises:
        ValueError: the URL has an unknown setting, or one that is no number.
    """

    kind = "echo"

    def __init__(
        self, url: str = "echo://", *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.url = url
        self._settings = parse_echo_url(url)
        self._sleep = sleep

    async def models(self) -> list[ModelInfo]:
        """The models of the URL."""
        return [
            ModelInfo(name, next((kinds for word, kinds in _KINDS if word in name)))
            for name in self._settings.models
        ]

    async def loaded(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self._settings.models)

    async def slots(self) -> int:
        """The slots of the URL."""
        return self._settings.slots

    @property
    def traffic(self) -> Traffic:
        """Nothing goes anywhere."""
        return Traffic()

    async def version(self) -> str:
        """None of its own."""
        return ""

    def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Say the last message again."""
        given = request.get("messages") or [{}]
        return self._answer(model, str(given[-1].get("content") or ""))

    def generate(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Say the prompt again."""
        return self._answer(model, str(request.get("prompt") or ""))

    async def resume(
        self, kind: JobKind, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Never: it says the same again just as well."""
        raise CannotContinue("an echo begins anew")
        yield  # makes it a generator

    async def embed(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Vectors:
        """One small vector per text, the same for the same text."""
        self._require(model)
        given = request.get("input") or []
        texts = [given] if isinstance(given, str) else list(given)
        if self._settings.delay_ms:
            await self._sleep(self._settings.delay_ms / 1000)
        return Vectors(
            [_vector(text) for text in texts],
            {"total_duration": 0, "load_duration": 0, "prompt_eval_count": len(texts)},
        )

    async def rerank(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Ranking:
        """The share of the query's words that each document has."""
        self._require(model)
        if self._settings.delay_ms:
            await self._sleep(self._settings.delay_ms / 1000)
        asked, documents = set(request["query"].lower().split()), request["documents"]
        scores = [len(asked & set(each.lower().split())) / max(1, len(asked)) for each in documents]
        best = sorted(enumerate(scores), key=lambda each: -each[1])[: request.get("top_n")]
        return Ranking(best, {"total_duration": 0, "load_duration": 0, "prompt_eval_count": len(documents)})

    async def warm(self, model: str, request: Mapping[str, Any]) -> None:
        """Nothing to load."""

    async def unload(self, model: str) -> None:
        """Nothing to unload."""

    async def close(self) -> None:
        """Nothing to close."""

    async def _answer(self, model: str, text: str) -> AsyncGenerator[Piece | End, None]:
        self._require(model)
        settings, began_at = self._settings, time.perf_counter_ns()
        if settings.delay_ms:
            await self._sleep(settings.delay_ms / 1000)
        first_at = time.perf_counter_ns()
        words = _words(text, settings.tokens)
        for at, word in enumerate(words):
            if at and settings.token_ms:
                await self._sleep(settings.token_ms / 1000)
            yield Piece(word)
        now = time.perf_counter_ns()
        yield End(
            {
                "done_reason": "stop",
                "total_duration": now - began_at,
                "load_duration": 0,
                "prompt_eval_count": len(text.split()),
                "prompt_eval_duration": first_at - began_at,
                "eval_count": len(words),
                "eval_duration": now - first_at,
            }
        )

    def _require(self, model: str) -> None:
        if model not in self._settings.models:
            raise BackendError(f"model '{model}' not found on {self.url}", status=404, retryable=True)


def parse_echo_url(url: str) -> EchoSettings:
    """Read the settings in an echo:// URL.

    Raises:
        ValueError: it has an unknown setting, or one that is no number.
    """
    parts = urlsplit(url)
    if parts.scheme != "echo":
        raise ValueError(f"{url!r} does not start with echo://")
    given = {
        name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()
    }
    defaults = EchoSettings()
    unknown = given.keys() - {"slots", "delay_ms", "tokens", "token_ms", "models"}
    if unknown:
        raise ValueError(
            f"{url!r} has unknown settings: {', '.join(sorted(unknown))}; "
            f"known are slots, delay_ms, tokens, token_ms and models"
        )
    models = tuple(name for name in given.get("models", "").split(",") if name)
    return EchoSettings(
        slots=int(given.get("slots", defaults.slots)),
        delay_ms=float(given.get("delay_ms", defaults.delay_ms)),
        tokens=int(given.get("tokens", defaults.tokens)),
        token_ms=float(given.get("token_ms", defaults.token_ms)),
        models=models or defaults.models,
    )


def _words(text: str, tokens: int) -> list[str]:
    if tokens <= 0:
        return [text] if text else []
    words = text.split() or ["echo"]
    return [words[at % len(words)] + " " for at in range(tokens)]


def _vector(text: str) -> list[float]:
    digest = hashlib.blake2b(text.encode(), digest_size=_DIMENSIONS).digest()
    values = [byte - 127.5 for byte in digest]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]
