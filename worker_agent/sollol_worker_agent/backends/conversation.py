"""One streamed request from its first byte to its end mark, the same for every make of server.

A `Reader` knows what a line means; this file knows what must be true of the whole: exactly one End,
and a failure if the body stops without it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends.http import HttpDoor
from sollol_worker_agent.backends.protocol import End, Piece, Timeouts


class Reader(Protocol):
    """Turns the lines of one answer into pieces."""

    def feed(self, line: bytes) -> Sequence[Piece | End]:
        """What `line` says; End, if it comes, comes last.

        Raises:
            BackendError: the line reports a failure, or makes no sense.
        """


@dataclass(frozen=True, slots=True)
class Call:
    """What to ask, and how to read the answer."""

    path: str
    body: Mapping[str, Any]
    reader: Reader


async def converse(
    door: HttpDoor, prepare: Callable[[], Awaitable[Call]], timeouts: Timeouts
) -> AsyncGenerator[Piece | End, None]:
    """Ask, and yield pieces, then exactly one End.

    Closing the generator early closes the connection, and with it the server's work.

    Args:
        door: the server.
        prepare: builds the call; runs when the first piece is asked for, and may ask the server itself.
        timeouts: hold for the call that `prepare` built.

    Raises:
        BackendError: refused, broken, or ended without the end mark; `partial` holds the text so far.
    """
    texts: list[str] = []
    try:
        call = await prepare()
        async with door.stream(call.path, call.body, timeouts) as stream:
            while lines := await stream.read():
                for line in lines:
                    for said in call.reader.feed(line):
                        if isinstance(said, End):
                            await stream.drain()
                            yield said
                            return
                        if said.text:
                            texts.append(said.text)
                        yield said
        raise BackendError(
            f"{door.server} at {door.url} ended its answer to {call.path} without the end mark; "
            f"the answer is truncated, the job can be tried again",
            retryable=True,
        )
    except BackendError as error:
        error.partial = error.partial or "".join(texts)
        raise


def only_touches(request: Mapping[str, Any]) -> bool:
    """Whether a request asks for nothing but the model in memory: no messages, no prompt."""
    asks = ("messages", "prompt", "suffix", "images", "raw")
    return not any(request.get(name) for name in asks)


async def touched(request: Mapping[str, Any]) -> AsyncGenerator[Piece | End, None]:
    """The answer to such a request, of a server that has its model in memory always."""
    yield End({"done_reason": "unload" if request.get("keep_alive") == 0 else "load"})
