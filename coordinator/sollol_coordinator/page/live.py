"""Server-sent events: a look, and then whatever is new in it, for as long as the browser stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import BoundedSemaphore

from .hub import Hub, Params

# A comment goes out after so long without news: a browser that has gone is noticed, and one whose key was revoked.
_QUIET_SECONDS = 10.0
# A browser that has lost us comes back after so long.
_RETRY_MS = 2000


class Streams:
    """The streams of one process, which are bounded: each takes a thread of the server.

    Args:
        most: at the same time.
    """

    def __init__(self, hub: Hub, most: int) -> None:
        self._hub = hub
        self._room = BoundedSemaphore(most)

    def open(self, name: str, params: Params, may_stay: Callable[[], bool]) -> Iterator[bytes] | None:
        """A stream of events; None = there is no room for another.

        Args:
            may_stay: asked now and then; the stream ends when it says no.
        """
        if not self._room.acquire(blocking=False):
            return None
        return _Stream(self._events(name, params, may_stay), self._room)

    def _events(self, name: str, params: Params, may_stay: Callable[[], bool]) -> Iterator[bytes]:
        yield b"retry: %d\n\n" % _RETRY_MS
        with self._hub.follow(name, params) as following:
            while True:
                try:
                    news = following.next(_QUIET_SECONDS)
                except EOFError:
                    return
                if not may_stay():
                    yield b'event: gone\ndata: {"error":"you are logged out"}\n\n'
                    return
                yield b": \n\n" if news is None else b"event: %s\ndata: %s\n\n" % (news[0].encode(), news[1])


class _Stream:
    """Gives its place back when the server closes it, begun or not."""

    def __init__(self, events: Iterator[bytes], room: BoundedSemaphore) -> None:
        self._events = events
        self._room: BoundedSemaphore | None = room

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """End it; it may be called again."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()
        room, self._room = self._room, None
        if room is not None:
            room.release()
