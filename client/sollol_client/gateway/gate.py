"""The gate before all paths: who is let in, how many at once; and what each answer carries."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sollol_broker.errors import SollolError

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
        self, app: ASGIApp, *, config: GatewayConfig, doorkeeper: Doorkeeper, metrics: Metrics
    ) -> None:
        self._app = app
        self._config = config
        self._doorkeeper = doorkeeper
        self._metrics = metrics
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


def _refusal(path: str, error: SollolError) -> Response:
    refusal = refusal_of(error)
    challenge: Mapping[str, str] = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return json_reply(error_body(path, refusal), refusal.status, {**refusal.headers(), **challenge})
