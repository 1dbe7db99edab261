"""The gate before all paths of the page: which requests are let in, and what each answer carries."""

from __future__ import annotations

import json
from typing import Any, cast
from urllib.parse import quote

from flask import Flask, Response, g, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.front_door import is_own_origin, names_us

from .config import PageConfig
from .guests import Guests
from .sessions import Visitor

COOKIE = "sollol_page"
# That of our scripts, and that of RQ's dashboard.
_TOKEN_HEADERS = ("X-CSRF-Token", "X-CSRFToken")
_SAFE = frozenset({"GET", "HEAD"})
# Anybody may have these.
_OPEN = ("/static/", "/login", "/livez", "/readyz")
# Browsers may keep these.
_KEPT = ("/static/", "/rq/static/")
# These are for programs: they get a status and JSON, no form.
_PLAIN = ("/api/", "/live/", "/do/", "/prompt", "/metrics")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_ON_ALL = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Powered-By": "SOLLOL",
}


class Gate:
    """Looks at each request before the app does.

    1. A Host that is not ours: 403.
    2. A request that a page of another site caused, other than a plain visit: 403.
    3. Nobody that is known: to the login, or 401.
    4. What changes something, without the token that only our pages know: 403.
    5. What changes something, by somebody who may only look: 403.
    """

    def __init__(self, app: Flask, config: PageConfig, guests: Guests) -> None:
        self._config = config
        self._guests = guests
        app.before_request(self._check)
        app.after_request(self._finish)

    def _check(self) -> AnyResponse | None:
        if not names_us(
            request.headers.getlist("Host"), listens_on=self._config.host, allowed=self._config.hosts
        ):  # 1
            return refusal(403, "this name is not one of the page's: start it with --allow-host NAME")
        if not _is_from_here():  # 2
            return refusal(403, "another site has sent this")
        g.word = request.cookies.get(cookie(), "")
        g.new_word = "" if g.word else self._guests.sessions.word()
        try:
            visitor = self._guests.visitor(cast("Any", request.headers), g.word)
        except BrokerUnavailable as error:
            return refusal(503, str(error))
        g.visitor = visitor
        if visitor is None and not request.path.startswith(_OPEN):  # 3
            if request.path.startswith(_PLAIN) or request.method not in _SAFE:
                return refusal(401, "log in, or show an API key: Authorization: Bearer KEY")
            return redirect("/login" if request.path == "/" else f"/login?next={_here()}")
        if request.method not in _SAFE:
            is_key = visitor is not None and visitor.is_key
            told = [request.headers.get(name, "") for name in _TOKEN_HEADERS]
            token = next(filter(None, told), "") or request.form.get("token", "")
            if not is_key and not self._guests.sessions.is_token(g.word, token):  # 4
                return refusal(403, "this form is out of date: load the page again")
            may = visitor is not None and visitor.may_operate
            if not may and request.path not in ("/login", "/logout"):  # 5
                return refusal(403, "your key may only look: changes need an API key of role admin")
        return None

    def _finish(self, response: Response) -> Response:
        for name, value in _ON_ALL.items():
            response.headers.setdefault(name, value)
        if not request.path.startswith(_KEPT):
            response.headers["Cache-Control"] = "no-store"
        word = g.get("new_word", "")
        if word and response.mimetype == "text/html":
            set_word(response, word)
        return response


def visitor() -> Visitor | None:
    """Who sent the present request."""
    return cast("Visitor | None", g.get("visitor"))


def word() -> str:
    """The word in the browser's cookie, as it is after this answer."""
    return str(g.word or g.new_word)


def cookie() -> str:
    """Its name. Browsers give the cookies of a host to all of its ports, and each may have a page."""
    port = request.host.rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isdigit() else COOKIE


def set_word(response: AnyResponse, value: str) -> None:
    """Give the browser its word; no script can read it, and no other site's request carries it."""
    g.new_word = ""
    response.set_cookie(cookie(), value, httponly=True, samesite="Strict", secure=request.is_secure, path="/")


def refusal(status: int, why: str) -> Response:
    """Say no: JSON to programs, plain text to people."""
    if request.path.startswith(_PLAIN):
        response = Response(f'{{"error":{_quoted(why)}}}\n', status, mimetype="application/json")
    else:
        response = Response(f"{why}\n", status, mimetype="text/plain")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _is_from_here() -> bool:
    """Whether no other site has caused the request; a plain visit by a link is nobody's harm."""
    origin = request.headers.get("Origin")
    if origin is not None and not is_own_origin(origin, request.headers.get("Host", "")):
        return False
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site in ("none", "same-origin"):
        return True
    return request.method in _SAFE and request.headers.get("Sec-Fetch-Mode") == "navigate"


def _here() -> str:
    return quote(request.full_path.rstrip("?"), safe="")


def _quoted(text: str) -> str:
    return json.dumps(text)
