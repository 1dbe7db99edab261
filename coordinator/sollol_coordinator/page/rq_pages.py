"""RQ's own dashboard, inside the page: the coordinator's jobs under the page's login.

What RQ's dashboard leaves to its host is done here: it reads JSON where it would unpickle, reaches Redis as the page
does, acts on POST alone, tells a wrong id from a mistake, and its pages run none but their own scripts.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from threading import Lock
from typing import Any

from flask import Flask, Response, request
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from werkzeug.wrappers import Response as AnyResponse

from sollol_broker.url import BrokerUrl

from ..rq_prefix import keep_rq_inside
from ..sync_redis import connect
from .gate import refusal

PLACE = "/rq"
_ENDPOINTS = "rq_dashboard."
# The cookie in which its scripts look for what their requests must carry.
_TOKEN_COOKIE = "_csrf_token"  # noqa: S105  # a name
_POLL_MS = 5000
_SOCKET_SECONDS = 5.0
# Its templates are made into functions by the browser. What they show may hold markup, of which no script runs: those
# alone do that carry the answer's own number.
_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
# In its pages: what may run is marked, and its name leads back.
_CHANGES = (
    (b'<script type="text/javascript">', b'<script type="text/javascript" nonce="%(nonce)s">'),
    (
        b'<a class="navbar-brand">',
        b'<a class="navbar-brand" href="/control">SOLLOL</a><a class="navbar-brand">',
    ),
)


def may_mount() -> bool:
    """Whether RQ's dashboard can be had in this process: RQ is set up once for a whole process, and not twice."""
    return "rq" not in sys.modules


def mount(app: Flask, url: BrokerUrl, token: Callable[[], str]) -> None:
    """Put it under PLACE. From here on RQ in this process is set up for this fabric.

    Args:
        app: with the gate before it.
        url: the fabric's Redis.
        token: what requests that change something must carry, in the present request.
    """
    keep_rq_inside(url.fabric)
    import rq_dashboard.web  # type: ignore[import-untyped]  # it ships no types
    from rq.exceptions import DeserializationError, NoSuchJobError

    read_json_only()
    door = _Door(url)
    # It would open a connection of its own for each request, by a URL that knows less than a fabric's.
    rq_dashboard.web.from_url = lambda *_, **__: (None, door.redis())
    app.config["RQ_DASHBOARD_REDIS_URL"] = (f"fabric {url.fabric}".strip(),)
    app.config["RQ_DASHBOARD_POLL_INTERVAL"] = _POLL_MS
    # Its scripts are templates, too, and quote what stands in an address.
    app.jinja_env.autoescape = True
    app.register_blueprint(rq_dashboard.web.blueprint, url_prefix=PLACE)

    @app.before_request
    def check() -> AnyResponse | None:
        if not _is_ours():
            return None
        if (request.view_args or {}).get("instance_number", 0) != 0:
            return refusal(404, "there is one Redis here, and its number is 0")
        if acts_by_get():
            return refusal(405, "this changes something: send it as POST")
        # Else it is known from the first page on that somebody has looked at, and who acts need not have looked.
        app.redis_conn = door.redis()  # type: ignore[attr-defined]
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        if _is_ours() and response.mimetype == "text/html":
            nonce = secrets.token_urlsafe(16)
            for old, new in _CHANGES:
                response.set_data(response.get_data().replace(old, new % {b"nonce": nonce.encode()}))
            response.headers["Content-Security-Policy"] = _POLICY.format(nonce=nonce)
            response.set_cookie(
                _TOKEN_COOKIE, token(), samesite="Strict", secure=request.is_secure, path=PLACE
            )
        return response

    @app.errorhandler(NoSuchJobError)
    def unknown(error: Exception) -> AnyResponse:
        return refusal(404, "RQ knows no such job (any more)")

    @app.errorhandler(DeserializationError)
    def unreadable(error: Exception) -> AnyResponse:
        return refusal(409, "this job is not in JSON, so it is none of the coordinator's, and is not read")

    @app.errorhandler(RedisError)
    def failed(error: RedisError) -> AnyResponse:
        if isinstance(error, NoPermissionError):
            return refusal(
                403, "the page's user of Redis may not do that: give it the one for role coordinator"
            )
        door.shut()
        return refusal(503, f"Redis does not answer: {type(error).__name__}")


def acts_by_get() -> bool:
    """Whether a mere link, or a picture on another page, would change something: RQ's dashboard lets it."""
    rule = request.url_rule
    return rule is not None and "POST" in (rule.methods or ()) and request.method != "POST"


def read_json_only() -> None:
    """Where RQ is given no serializer it would unpickle, and so run, whatever lies in Redis."""
    import rq.serializers
    import rq_dashboard.web
    from rq.exceptions import DeserializationError

    class Json(rq.serializers.JSONSerializer):
        @staticmethod
        def loads(s: bytes, *args: Any, **kwargs: Any) -> Any:
            try:
                return json.loads(s, *args, **kwargs)
            except ValueError:
                raise DeserializationError from None

    rq.serializers.PickleSerializer = Json  # type: ignore[assignment]  # noqa: TID251  # so that nothing pickles
    rq_dashboard.web.config.serializer = Json


class _Door:
    """The connection to Redis, made anew once it has failed: after a failover it leads elsewhere."""

    def __init__(self, url: BrokerUrl) -> None:
        self._url = url
        self._lock = Lock()
        self._redis: Redis | None = None

    def redis(self) -> Redis:
        with self._lock:
            if self._redis is None:
                self._redis = connect(self._url, socket_seconds=_SOCKET_SECONDS)
            return self._redis

    def shut(self) -> None:
        with self._lock:
            broken, self._redis = self._redis, None
        if broken is not None:
            broken.close()


def _is_ours() -> bool:
    return (request.endpoint or "").startswith(_ENDPOINTS)
