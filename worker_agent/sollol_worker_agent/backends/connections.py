"""Open connections to one LLM server. What goes over them is told by http.py.

httpx keeps all of a client's connections in one pool, and looks at each of them for each request, twice: with 32 of
them that took longer than all else of a request. So each is a pool of its own here, and the last one used is used next.
"""

from __future__ import annotations

import time
from collections import deque

import httpx

# llama-server closes an idle connection after 5 s; we let go first, so that none dies under a request.
KEEPALIVE_SECONDS = 4.0


class Connections:
    """Opened as they are needed, without a limit, and kept for a while.

    Args:
        is_https: the server shows a certificate, which is checked.
    """

    def __init__(self, *, is_https: bool) -> None:
        # A context with all authorities takes longer to make than a request takes.
        self._verify = httpx.create_ssl_context(verify=is_https, trust_env=False)
        # With the moment of their last use, the latest last.
        self._idle: deque[tuple[float, httpx.AsyncHTTPTransport]] = deque()
        self._busy: dict[httpx.Response, httpx.AsyncHTTPTransport] = {}

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the answer's body has not been read yet. Give it to `done` whatever becomes of it.

        Raises:
            httpx.TransportError: the connection could not be opened, or broke.
        """
        # One whose time is over closes its connection itself, and opens another.
        transport = self._idle.pop()[1] if self._idle else self._opened()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            # It may be open: httpx keeps one on which a cancelled request had not begun yet, and we forget it here.
            await transport.aclose()
            raise
        self._busy[response] = transport
        return response

    async def done(self, response: httpx.Response) -> None:
        """The answer is not wanted any further: its connection is kept if all of it was read, else closed."""
        transport = self._busy.pop(response, None)
        await response.aclose()
        now = time.monotonic()
        if transport is not None:
            self._idle.append((now, transport))
        while self._idle and self._idle[0][0] < now - KEEPALIVE_SECONDS:
            await self._idle.popleft()[1].aclose()

    async def close(self) -> None:
        """Close all; answers that are still read break."""
        transports = [*self._busy.values(), *(transport for _, transport in self._idle)]
        self._busy.clear()
        self._idle.clear()
        for transport in transports:
            await transport.aclose()

    def _opened(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_SECONDS
        )
        return httpx.AsyncHTTPTransport(verify=self._verify, limits=limits, trust_env=False)
