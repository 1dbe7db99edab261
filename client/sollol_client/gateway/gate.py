"""The gate before all paths: who is let in, how many at once; and what each answer carries."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sollol_broker.errors import SollolError
from sollol_broker.live_log import LiveLog
from sollol_broker.log_entry import Level

from .caller import ANYBODY, Caller
from .config import GatewayConfig
from .doorkeeper import Doorkeeper
from .guards import cors_headers, host_allowed, origin_allowed
from .metrics import Metrics
from .refusals import Refused, refusal_of
from .replies import json_reply
from .roles import role_for
from .shapes import error_body

# Whoever watches us has to get through when nobody else does.
_ALWAYS = frozenset({"/livez", "/readyz", "/metrics"})
_ON_ALL = {"X-Powered-By": "SOLLOL", "X-Content-Type-Options": "nosniff"}
_BUSY = "server busy, please try again.  maximum pending requests exceeded"


class Gate:
    """ASGI around the app.

    1. A Host or an Origin that is not ours: 403.
    2. A page of an allowed site asks beforehand: 204.
    3. Too many requests at once: 503.
    4. No API key that is good for the path: 401, 403.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: GatewayConfig,
        doorkeeper: Doorkeeper,
        metrics: Metrics,
        live: LiveLog,
    ) -> None:
        self._app = app
        self._config = config
        self._doorkeeper = doorkeeper
        self._metrics = metrics
        self._live = live
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        more = {**_ON_ALL, **cors_headers(scope["method"], headers, self._config)}
        began, status = time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(more)
            await send(message)

        self._inside += 1
        self._metrics.in_flight.inc()
        try:
            refused = await self._refused(scope, headers)
            await (refused or self._app)(scope, receive, sending)
        finally:
            self._inside -= 1
            self._metrics.in_flight.dec()
            self._metrics.note(scope, status, time.monotonic() - began)
            if scope["path"] not in _ALWAYS:
                self._tell(scope, status, time.monotonic() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        """To the live log: what failed, who was refused, and some of what went well."""
        caller = scope.get("state", {}).get("caller", ANYBODY)
        self._live.note(
            *_told(status),
            app=caller.key.app if isinstance(caller, Caller) and caller.key is not None else "",
            # The route's pattern, not what a stranger has typed.
            path=getattr(scope.get("route"), "path", "other"),
            method=scope["method"] if "route" in scope else "",
            status=status,
            ms=round(seconds * 1000),
        )

    async def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        method, path = scope["method"], scope["path"]
        is_ours = host_allowed(headers.getlist("host"), self._config)
        if not is_ours or not origin_allowed(method, headers, self._config):  # 1
            return Response(status_code=403)
        if method == "OPTIONS" and "access-control-request-method" in headers:  # 2
            return Response(status_code=204)
        try:
            if self._inside > self._config.max_requests and path not in _ALWAYS:  # 3
                raise Refused(503, _BUSY, retry_after=1)
            scope.setdefault("state", {})["caller"] = await self._doorkeeper.caller(
                headers, role_for(path)
            )  # 4
        except SollolError as error:
            return _refusal(path, error)
        return None


def _told(status: int) -> tuple[Level, str]:
    if status >= 500 and status != 503:
        return Level.ERROR, "request failed"
    if status in (401, 403, 429, 503):
        return Level.WARNING, "request refused"
    return Level.INFO, "request answered" if status < 400 else "request not understood"


def _refusal(path: str, error: SollolError) -> Response:
    refusal = refusal_of(error)
    challenge: Mapping[str, str] = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return json_reply(error_body(path, refusal), refusal.status, {**refusal.headers(), **challenge})
