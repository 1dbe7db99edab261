"""Server-sent events: a look, and then whatever is new in it, for as long as the browser stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import BoundedSemaphore

from .hub import Following, Hub, Params

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

        Raises:
            TooMany: of different views.
        """
        if not self._room.acquire(blocking=False):
            return None
        try:
            following = self._hub.join(name, params)
        except BaseException:
            self._room.release()
            raise

        def leave() -> None:
            self._hub.leave(following)
            self._room.release()

        return _Stream(_events(following, may_stay), leave)


def _events(following: Following, may_stay: Callable[[], bool]) -> Iterator[bytes]:
    yield b"retry: %d\n\n" % _RETRY_MS
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
    """Leaves its place when the server closes it, begun or not."""

    def __init__(self, events: Iterator[bytes], leave: Callable[[], None]) -> None:
        self._events = events
        self._leave: Callable[[], None] | None = leave

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        """End it; it may be called again."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
