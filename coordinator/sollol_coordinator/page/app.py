"""The paths of the page: shells of HTML that scripts fill, the looks as JSON and as events, the actions, the login."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from flask import Flask, Response, redirect, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from sollol_broker.errors import BrokerUnavailable, InvalidJob, NotAllowed, SollolError
from sollol_broker.url import BrokerUrl
from sollol_broker.version import VERSION

from . import rq_pages
from .actions import Actions
from .config import PageConfig
from .gate import Gate, cookie, refusal, set_word, visitor, word
from .guests import Guests
from .hub import Hub, TooMany
from .live import Streams
from .looks import PageLooks

_MOST_BODY_BYTES = 64 * 1024
# Path, its look, its name in the menu; in the menu's order. Those without a name are reached by links.
PAGES = (
    ("/", "overview", "Overview"),
    ("/nodes", "nodes", "Nodes"),
    ("/jobs", "jobs", "Queues & jobs"),
    ("/groups", "groups", "RPC groups"),
    ("/batches", "batches", "Batches"),
    ("/apps", "apps", "Applications"),
    ("/log", "log", "Log"),
    ("/control", "control", "Control jobs"),
    ("/node", "node", ""),
    ("/job", "job", ""),
)


def build(
    config: PageConfig,
    *,
    looks: PageLooks,
    hub: Hub,
    actions: Actions,
    guests: Guests,
    run: Callable[[Awaitable[Any]], Any],
    rq_url: BrokerUrl | None = None,
) -> Flask:
    """The app.

    Args:
        run: runs a coroutine in the broker's loop, and waits for what it gives.
        rq_url: the fabric's Redis, for RQ's own dashboard; None = without it.
    """
    app = Flask(__name__)
    app.config.update(
        MAX_CONTENT_LENGTH=_MOST_BODY_BYTES,
        SEND_FILE_MAX_AGE_DEFAULT=None,
        TRAP_BAD_REQUEST_ERRORS=False,
    )
    Gate(app, config, guests)

    def token() -> str:
        return guests.sessions.token(word())

    if rq_url is not None:
        rq_pages.mount(app, rq_url, token)
    streams = Streams(hub, config.most_browsers)

    @app.context_processor
    def shared() -> dict[str, Any]:
        who = visitor()
        return {
            "version": VERSION,
            "fabric": looks.fabric,
            "menu": [(path, look, title) for path, look, title in PAGES if title],
            "visitor": who,
            "needs_login": config.needs_login,
            "shows_prompts": config.show_prompts and who is not None and who.may_operate,
            "token": token(),
            "rq": f"{rq_pages.PLACE}/" if rq_url is not None else "",
        }

    def shell(look: str, title: str) -> Callable[[], str]:
        def page() -> str:
            with contextlib.suppress(SollolError):  # whatever it is, who follows the look is told
                hub.expect(look, looks.params(look, request.args))
            return render_template("page.html", look=look, title=title)

        return page

    for path, look, title in PAGES:
        app.add_url_rule(path, look, shell(look, title or look.capitalize()))

    @app.get("/live/<name>")
    def live(name: str) -> AnyResponse:
        who = visitor()
        events = streams.open(
            name, looks.params(name, request.args), lambda: who is not None and guests.is_good(who)
        )
        if events is None:
            raise TooMany("so many browsers watch that this one has to ask now and then")
        return Response(events, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @app.get("/api/<name>")
    def api(name: str) -> AnyResponse:
        kind, text = hub.ask(name, looks.params(name, request.args))
        status = json.loads(text)["status"] if kind == "trouble" else 200
        return Response(text, status, mimetype="application/json")

    @app.get("/prompt")
    def prompt() -> AnyResponse:
        who = visitor()
        if not config.show_prompts or who is None or not who.may_operate:
            return refusal(
                403, "the page shows no prompts" if who and who.may_operate else "your key may only look"
            )
        return _json({"text": run(looks.prompt(request.args.get("id", "")))})

    @app.post("/do/<verb>")
    def do(verb: str) -> AnyResponse:
        given = {name: value for name, value in request.form.items() if name != "token"}
        said = run(actions.do(verb, given))
        return _json({"said": said})

    @app.route("/login", methods=["GET", "POST"])
    def login() -> AnyResponse | str | tuple[str, int]:
        onward = _own_path(request.values.get("next", "/"))
        if request.method == "GET":
            return redirect(onward) if visitor() is not None else render_template("login.html", onward=onward)
        address = request.remote_addr or ""
        wait = guests.tries.wait_seconds(address)
        if wait > 0:
            why = f"too many tries: wait {wait:.0f} s"
            return render_template("login.html", onward=onward, why=why), 429
        found = guests.log_in(request.form.get("secret", "").strip(), address)
        if found is None:
            return render_template(
                "login.html", onward=onward, why="neither the password nor a key that is good"
            ), 403
        guests.sessions.end(word())
        response = redirect(onward)
        set_word(response, found)
        return response

    @app.post("/logout")
    def logout() -> AnyResponse:
        guests.sessions.end(word())
        response = redirect("/login" if config.needs_login else "/")
        response.delete_cookie(cookie())
        return response

    @app.get("/metrics")
    def metrics() -> AnyResponse:
        return Response(run(looks.metrics()), content_type=CONTENT_TYPE_LATEST)

    @app.after_request
    def renew(response: Response) -> Response:
        if request.method == "POST" and response.status_code < 400:
            hub.renew()
        return response

    @app.get("/livez")
    def livez() -> AnyResponse:
        return Response("ok", mimetype="text/plain")

    @app.get("/readyz")
    def readyz() -> AnyResponse:
        why = run(looks.broken())
        return Response(f"not ready: {why}" if why else "ok", 503 if why else 200, mimetype="text/plain")

    @app.errorhandler(SollolError)
    def failed(error: SollolError) -> AnyResponse:
        return refusal(_status(error), str(error))

    @app.errorhandler(EOFError)
    def stopping(error: EOFError) -> AnyResponse:
        return refusal(503, "the page is being stopped")

    @app.errorhandler(HTTPException)
    def wrong(error: HTTPException) -> AnyResponse:
        return refusal(error.code or 500, error.description or error.name)

    return app


def _status(error: SollolError) -> int:
    if isinstance(error, NotAllowed):
        return 403
    if isinstance(error, BrokerUnavailable | TooMany):
        return 503
    return 400 if isinstance(error, InvalidJob) else 409


def _own_path(text: str) -> str:
    """Where to after the login: a path of ours, or the first page."""
    is_own = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_own and len(text) < 500 else "/"


def _json(value: dict[str, Any]) -> Response:

    return Response(json.dumps(value), mimetype="application/json")
