"""Finds out, once per model, whether a server goes on with an answer that it is given the beginning of.

Most servers take a conversation that ends with the assistant's words. Some go on behind them; others close the message
and begin a new one, and no word of theirs tells which. So one short answer is cut in two, and the rest asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends.openai_wire import LOAD_OPTIONS
from sollol_worker_agent.backends.protocol import End, Piece, Said, Timeouts
from sollol_worker_agent.backends.resuming import before_blanks

# A question with an answer that does not repeat itself, so that its beginning is not mistaken for its rest.
QUESTION = "Write the numbers from one to nine as words."
_TOKENS = 16

# A model may have to be loaded first.
PROBE_TIMEOUTS = Timeouts(between_tokens=30.0, total=600.0)

# Asks QUESTION, with these words of the assistant behind it if there are any, for at most so many tokens.
Ask = Callable[[str, int], Awaitable[Sequence[Piece]]]


class Probes:
    """What is known of the models of one server."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, bool]] = {}
        self._versions: dict[str, str] = {}

    def known(self, model: str) -> bool | None:
        """Whether it goes on, asked in some manner or other; None = not tried yet."""
        found = self._known.get(model)
        return any(found.values()) if found else None

    def note_version(self, model: str, version: str) -> None:
        """What was known of another version of the model holds no more."""
        if self._versions.get(model, version) != version:
            self._known.pop(model, None)
        self._versions[model] = version

    async def goes_on(self, model: str, manner: object, ask: Ask) -> bool:
        """Whether it goes on when asked in this manner (with thinking off, say); tried once.

        Raises:
            BackendError: the server did not answer at all.
        """
        known = self._known.setdefault(model, {})
        if str(manner) not in known:
            known[str(manner)] = await _goes_on(ask)
        return known[str(manner)]


def question(request: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The chat that asks QUESTION, in the manner of `request`."""
    options = request.get("options") or {}
    load = {name: value for name, value in options.items() if name in LOAD_OPTIONS}
    kept = {name: request[name] for name in ("think", "keep_alive") if request.get(name) is not None}
    messages = [{"role": "user", "content": QUESTION}]
    return {**kept, "messages": messages, "options": {**load, "temperature": 0, "num_predict": tokens}}


def with_last(request: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A chat with these words of the assistant at its end."""
    given = request.get("messages") or ()
    return {**request, "messages": [*given, {"role": "assistant", "content": text}]}


async def pieces_of(events: AsyncIterator[Piece | End]) -> list[Piece]:
    """An answer's pieces, once it has ended."""
    return [event async for event in events if isinstance(event, Piece)]


async def _goes_on(ask: Ask) -> bool:
    """1. the answer as it is, 2. cut in the middle, 3. whether the rest, and nothing else, comes back."""
    whole = Said(tuple(await ask("", _TOKENS)))  # 1
    begun = before_blanks(Said(whole.pieces[: len(whole.pieces) // 2]))  # 2
    rest = whole.text[len(begun.text) :]
    if not begun.text or not rest or whole.text.startswith(rest) or any(p.thinking for p in whole.pieces):
        return False
    try:
        got = Said(tuple(await ask(begun.text, _TOKENS - begun.tokens)))  # 3
    except BackendError as error:
        if error.retryable:
            raise
        return False  # it does not even take such a conversation
    return got.text == rest
