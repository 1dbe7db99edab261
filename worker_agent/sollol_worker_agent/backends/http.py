"""The one door to an LLM server: connections, the four timeouts, and foreign errors turned into ours.

Nothing above this file knows httpx. What the lines of an answer mean is told by the readers
(`ollama.py`, `openai_stream.py`); here they are bytes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, cast

import httpx

from sollol_broker.errors import BackendError, BackendTimeout
from sollol_broker.version import VERSION
from sollol_worker_agent.backends.connections import Connections
from sollol_worker_agent.backends.protocol import Timeouts, Traffic
from sollol_worker_agent.backends.refusals import advice, is_retryable, meant, text_of

# Servers end the body right behind the last line. Waiting this long for it lets the connection be reused.
_DRAIN_SECONDS = 0.2

# Questions about the server itself ("what do you have?") are answered from memory.
ASK_TIMEOUTS = Timeouts(connect=5.0, first_token=10.0, between_tokens=10.0, total=20.0)

# httpx calls one of these with the name of each step of a request.
Trace = Callable[[str, Mapping[str, Any]], Awaitable[None]]


class HttpDoor:
    """A pool of connections to one LLM server.

    There is no limit on connections: the agent decides how many requests run at once, and a pool
    that makes one wait would only hide that.

    Args:
        url: where the server listens, e.g. "http://127.0.0.1:11434".
        server: what to call it in error texts, e.g. "Ollama".
        api_key: sent as a bearer token if given.

    Raises:
        ValueError: `url` is not an http or https address.
    """

    def __init__(self, url: str, *, server: str, api_key: str | None = None) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"{url!r} is not an http or https URL such as http://127.0.0.1:11434")
        self.url = url.rstrip("/")
        self.server = server
        self.traffic = Traffic()
        # What the last answer said of who made it.
        self.powered_by = ""
        self._headers = {
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"sollol/{VERSION}",
        }
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._connections = Connections(is_https=parsed.scheme == "https")

    async def get(self, path: str, timeouts: Timeouts = ASK_TIMEOUTS) -> Any:
        """Fetch JSON.

        Raises:
            BackendError: the server refused, broke, or answered something that is not JSON.
        """
        async with LineStream(self, "GET", path, None, timeouts) as stream:
            return self._parsed(path, await stream.read_all())

    async def post(self, path: str, body: Mapping[str, Any], timeouts: Timeouts = ASK_TIMEOUTS) -> Any:
        """Send JSON and fetch JSON.

        Raises:
            BackendError: the server refused, broke, or answered something that is not JSON.
        """
        async with LineStream(self, "POST", path, body, timeouts) as stream:
            return self._parsed(path, await stream.read_all())

    def stream(
        self, path: str, body: Mapping[str, Any], timeouts: Timeouts, *, method: str = "POST"
    ) -> LineStream:
        """Send JSON and read the answer line by line."""
        return LineStream(self, method, path, body, timeouts)

    async def close(self) -> None:
        """Close all connections; requests in flight end with BackendError."""
        await self._connections.close()

    def _parsed(self, path: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError as error:
            raise BackendError(
                f"{self.server} at {self.url} answered {path} with something that is not JSON; "
                f"is the URL that of an LLM server?",
                status=200,
                retryable=True,
            ) from error

    # LineStream alone calls the following.

    def _count(self, *, requests: int = 0, connections: int = 0, again: int = 0) -> None:
        seen = self.traffic
        self.traffic = Traffic(seen.requests + requests, seen.connections + connections, seen.again + again)

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, connect: float, trace: Trace
    ) -> httpx.Request:
        return httpx.Request(
            method,
            self.url + path,
            headers=self._headers,
            content=None if body is None else encoded(body),
            extensions={"trace": trace, "timeout": {"connect": connect or None}},
        )

    async def _send(self, request: httpx.Request) -> httpx.Response:
        return await self._connections.send(request)

    async def _done(self, response: httpx.Response) -> None:
        await self._connections.done(response)


class LineStream:
    """One request and the lines of its answer; leaving the context closes the connection.

    An answer that was read to its end leaves its connection in the pool.
    """

    def __init__(
        self, door: HttpDoor, method: str, path: str, body: Mapping[str, Any] | None, timeouts: Timeouts
    ) -> None:
        self._door = door
        self._method = method
        self._path = path
        self._body = body
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._phase = "first_token"
        now = self._loop.time()
        self._phase_at = _at(now, timeouts.first_token)
        self._total_at = _at(now, timeouts.total)
        self._rest = b""
        self._response: httpx.Response | None = None
        self._chunks: AsyncGenerator[bytes, None] | None = None

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout_at(self._deadline()):
                self._response = await self._send()
        except TimeoutError as error:
            raise self._too_slow() from error
        except httpx.ConnectTimeout as error:
            raise self._timeout("connect", self._timeouts.connect) from error
        except httpx.ConnectError as error:
            raise BackendError(
                f"{self._who()} cannot be reached ({error}); start it, or correct the URL",
                retryable=True,
            ) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._broken(error) from error
        # httpx types it as an iterator; it is a generator, and has to be closed like one.
        self._chunks = cast(AsyncGenerator[bytes, None], self._response.aiter_raw())
        if not self._response.is_success:
            try:
                raise await self._refusal(self._response.status_code)
            finally:
                await self._close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def read(self) -> list[bytes]:
        """The next lines that say something; empty at the end of the body.

        Blank lines and server-sent comments (": ping") are left out, and do not count as progress.

        Raises:
            BackendTimeout: first_token, between_tokens or total ran out.
            BackendError: the connection broke.
        """
        while (chunk := await self._chunk()) is not None:
            parts = (self._rest + chunk).split(b"\n")
            self._rest = parts.pop()
            lines = [line for part in parts if (line := part.strip()) and not line.startswith(b":")]
            if lines:
                self._made_progress()
                return lines
        last, self._rest = self._rest.strip(), b""
        return [last] if last else []

    async def read_all(self) -> bytes:
        """The whole body."""
        parts = []
        while (chunk := await self._chunk()) is not None:
            parts.append(chunk)
            self._made_progress()
        return b"".join(parts)

    async def drain(self) -> None:
        """Read what is left of a finished answer, so that the connection can serve the next one."""
        if self._chunks is not None:
            with contextlib.suppress(TimeoutError, httpx.HTTPError, httpx.StreamError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    async for _ in self._chunks:
                        pass

    async def _send(self) -> httpx.Response:
        # llama-server closes a connection after each streamed answer without saying so beforehand, and
        # a request that comes just then gets no reply. On a connection that was used before, that says
        # nothing about the server, so the request is sent again until it went over a new one.
        while True:
            is_new = False

            async def trace(event: str, info: Mapping[str, Any]) -> None:
                nonlocal is_new
                is_new = is_new or event == "connection.connect_tcp.started"

            try:
                request = self._door._request(
                    self._method, self._path, self._body, self._timeouts.connect, trace
                )
            except TypeError as error:
                raise BackendError(f"the request cannot be sent as JSON: {error}", status=400) from error
            try:
                response = await self._door._send(request)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                if is_new:
                    raise
                self._door._count(again=1)
            else:
                self._door._count(requests=1, connections=int(is_new))
                self._door.powered_by = response.headers.get("x-powered-by", "")
                return response

    async def _chunk(self) -> bytes | None:
        if self._chunks is None:
            raise RuntimeError("enter the stream before reading from it")
        try:
            async with asyncio.timeout_at(self._deadline()):
                return await anext(self._chunks, None)
        except TimeoutError as error:
            raise self._too_slow() from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._broken(error) from error

    async def _close(self) -> None:
        if self._chunks is not None:
            await self._chunks.aclose()
        if self._response is not None:
            await self._door._done(self._response)

    def _made_progress(self) -> None:
        self._phase = "between_tokens"
        self._phase_at = _at(self._loop.time(), self._timeouts.between_tokens)

    def _deadline(self) -> float | None:
        if self._phase_at is None or self._total_at is None:
            return self._total_at if self._phase_at is None else self._phase_at
        return min(self._phase_at, self._total_at)

    def _too_slow(self) -> BackendTimeout:
        if self._total_at is not None and self._loop.time() >= self._total_at:
            return self._timeout("total", self._timeouts.total)
        return self._timeout(self._phase, getattr(self._timeouts, self._phase))

    def _timeout(self, phase: str, seconds: float) -> BackendTimeout:
        happened = {
            "connect": "took no connection",
            "first_token": "said nothing",
            "between_tokens": "fell silent in the middle of its answer",
            "total": "had not finished",
        }[phase]
        return BackendTimeout(
            f"{self._who()} {happened} within {seconds:g} s; raise the {phase} timeout if that is "
            f"normal for this model",
            phase=phase,
        )

    def _broken(self, error: Exception) -> BackendError:
        return BackendError(
            f"{self._who()} broke off ({type(error).__name__}: {error}); see its log, the job can be "
            f"tried elsewhere",
            retryable=True,
        )

    async def _refusal(self, status: int) -> BackendError:
        body = b""
        with contextlib.suppress(BackendError):
            body = await self.read_all()
        text = text_of(body, self._body or {})
        return BackendError(
            f"{self._who()} answered {status} to {self._path}: {text}{advice(status)}",
            status=meant(status, text),
            retryable=is_retryable(status, text),
            said=text,
        )

    def _who(self) -> str:
        return f"{self._door.server} at {self._door.url}"


def encoded(body: Mapping[str, Any]) -> bytes:
    """`body` as JSON; bytes (images) become base64, as every server wants them."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=_plain).encode(
        "utf-8", "surrogatepass"
    )


def _plain(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent as JSON")


def _at(now: float, seconds: float) -> float | None:
    return now + seconds if seconds > 0 else None
