"""Who is let in, and who may change things: each guard of the page, with real requests and without a Redis."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping
from typing import Any, cast

import pytest
from flask.testing import FlaskClient

from sollol_broker.api_keys import ApiKey, KeyRole, mint
from sollol_broker.errors import BrokerUnavailable, NotAllowed
from sollol_broker.key_store import KeyStore
from sollol_coordinator.page.actions import Actions
from sollol_coordinator.page.app import build
from sollol_coordinator.page.config import PageConfig, Role
from sollol_coordinator.page.gate import COOKIE
from sollol_coordinator.page.guests import Guests
from sollol_coordinator.page.hub import Hub, TooMany
from sollol_coordinator.page.live import Streams
from sollol_coordinator.page.looks import PageLooks

_PASSWORD = "correct horse"  # noqa: S105  # a test's
VIEWER, VIEWERS = mint("eva", KeyRole.VIEWER, now=1.0)
APP, APPS = mint("chat", KeyRole.APP, now=1.0)
ADMIN, ADMINS = mint("ops", KeyRole.ADMIN, now=1.0)
OLD, OLDS = mint("old", KeyRole.ADMIN, now=1.0, seconds=1)


class Store:
    """The keys above; `gone` are revoked."""

    gone: frozenset[str] = frozenset()
    is_away = False

    async def record(self, digest: str) -> tuple[ApiKey | None, float]:
        if self.is_away:
            raise BrokerUnavailable("Redis is away")
        known = {key.digest: key for key in (VIEWERS, APPS, ADMINS, OLDS)}
        return (None if digest in self.gone else known.get(digest)), 100.0


class Looks:
    fabric = ""

    async def prompt(self, job_id: str) -> str:
        return f"what {job_id} was asked"

    def params(self, name: str, given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(given.items())


class Readers:
    is_full = False

    def join(self, name: str, params: object) -> object:
        if self.is_full:
            raise TooMany("close some")
        return object()

    def leave(self, following: object) -> None:
        pass

    def renew(self) -> None:
        pass

    def expect(self, name: str, params: object) -> None:
        assert name

    def ask(self, name: str, params: object) -> tuple[str, bytes]:
        return "look", b'{"secret":"what lies in Redis"}'


class Doing:
    def __init__(self) -> None:
        self.done: list[tuple[str, dict[str, str]]] = []
        self.error: Exception | None = None

    async def do(self, verb: str, given: Mapping[str, str]) -> str:
        if self.error is not None:
            raise self.error
        self.done.append((verb, dict(given)))
        return "done"


class House:
    """A page, and browsers that visit it."""

    def __init__(self, **config: Any) -> None:
        settings = PageConfig(**config)
        self.store, self.doing = Store(), Doing()
        self.guests = Guests(settings, cast("KeyStore", self.store), _run)
        self.app = build(
            settings,
            looks=cast("PageLooks", Looks()),
            hub=cast("Hub", Readers()),
            actions=cast("Actions", self.doing),
            guests=self.guests,
            run=_run,
        )

    def browser(self) -> FlaskClient:
        return self.app.test_client()


def _run(work: Awaitable[Any]) -> Any:
    async def waiting() -> Any:
        return await work

    return asyncio.run(waiting())


def _token(browser: FlaskClient, path: str = "/") -> str:
    found = re.search(r'name="(?:csrf-token" content|token" value)="([0-9a-f]{64})"', browser.get(path).text)
    assert found is not None
    return found[1]


def _log_in(browser: FlaskClient, secret: str, **more: str) -> int:
    form = {"secret": secret, "token": _token(browser, "/login"), **more}
    return browser.post("/login", data=form).status_code


def _cancel(browser: FlaskClient, token: str, **headers: str) -> int:
    given = {"X-CSRF-Token": token, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return browser.post("/do/cancel", data={"job": "j1"}, headers=given).status_code


def test_on_this_machine_everybody_may_operate_with_a_token() -> None:
    house = House()
    browser = house.browser()
    token = _token(browser)
    assert _cancel(browser, token) == 200
    assert house.doing.done == [("cancel", {"job": "j1"})]
    assert browser.get("/login").status_code == 302


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},  # another port of this machine is another site
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"},
    ],
)
def test_no_other_site_gets_anything_done_even_with_a_token(headers: dict[str, str]) -> None:
    house = House()
    browser = house.browser()
    assert _cancel(browser, _token(browser), **headers) == 403
    assert house.doing.done == []


@pytest.mark.parametrize("headers", [{"Origin": "http://localhost"}, {"Sec_Fetch_Site": "same-origin"}])
def test_our_own_pages_do(headers: dict[str, str]) -> None:
    browser = House().browser()
    assert _cancel(browser, _token(browser), **headers) == 200


def test_nothing_is_done_without_the_token_of_this_very_browser() -> None:
    house = House()
    browser, other = house.browser(), house.browser()
    token = _token(browser)
    for wrong in ("", "0" * 64, _token(other), token[:-1]):
        assert _cancel(browser, wrong) == 403
    assert browser.post("/do/cancel", data={"job": "j1"}).status_code == 403
    browser.delete_cookie(COOKIE)
    assert _cancel(browser, token) == 403
    assert house.doing.done == []
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert browser.open("/do/cancel", method=method).status_code in (403, 405)


@pytest.mark.parametrize("mode", ["cors", "no-cors", "same-origin"])
def test_other_sites_may_link_to_the_page_and_read_nothing(mode: str) -> None:
    browser = House().browser()
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert browser.get("/", headers={**foreign, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert browser.get("/api/jobs", headers={**foreign, "Sec-Fetch-Mode": mode}).status_code == 403
    answer = browser.get("/api/jobs")
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_where_others_reach_it_nobody_sees_anything_without_a_login() -> None:
    house = House(host="0.0.0.0")  # noqa: S104  # nothing is bound here
    browser = house.browser()
    for path in ("/api/overview", "/live/overview", "/do/cancel"):
        assert browser.get(path).status_code == 401
    answer = browser.get("/jobs?state=dead")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login?next=%2Fjobs%3Fstate%3Ddead")
    for path in ("/login", "/livez", "/static/page.css"):
        assert browser.get(path, buffered=True).status_code == 200
    assert _cancel(browser, _token(browser, "/login")) == 401
    assert house.doing.done == []


@pytest.mark.parametrize(
    ("secret", "status", "may_operate"),
    [(VIEWER, 302, False), (APP, 302, False), (ADMIN, 302, True), (_PASSWORD, 302, True), (OLD, 403, None),
     ("guess", 403, None)],
    ids=["viewer", "app", "admin", "password", "old", "guess"],
)  # fmt: skip
def test_keys_and_the_password_let_in_as_far_as_they_go(
    secret: str, status: int, may_operate: bool | None
) -> None:
    house = House(login=True, password=_PASSWORD)
    browser = house.browser()
    assert _log_in(browser, secret) == status
    if may_operate is None:
        assert browser.get("/api/overview").status_code == 401
        return
    assert browser.get("/api/overview").status_code == 200
    assert _cancel(browser, _token(browser)) == (200 if may_operate else 403)
    assert bool(house.doing.done) is may_operate
    assert browser.post("/logout", data={"token": _token(browser)}).status_code == 302
    assert browser.get("/api/overview").status_code == 401


def test_the_password_may_be_for_viewers() -> None:
    browser = House(password=_PASSWORD, password_role=Role.VIEWER).browser()
    assert _log_in(browser, _PASSWORD) == 302
    assert _cancel(browser, _token(browser)) == 403


def test_a_key_that_is_revoked_is_out_though_it_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_KEPT_SECONDS", "_AWAY_SECONDS"):
        monkeypatch.setattr(f"sollol_coordinator.page.guests.{name}", -1.0)
    house = House(login=True)
    browser = house.browser()
    assert _log_in(browser, ADMIN) == 302
    house.store.is_away = True
    assert browser.get("/api/overview").status_code == 200  # a Redis that is away turns nobody out
    house.store.is_away = False
    house.store.gone = frozenset({ADMINS.digest})
    assert browser.get("/api/overview").status_code == 401


def test_programs_show_a_key_with_each_request() -> None:
    house = House(login=True)
    browser = house.browser()
    assert browser.get("/api/overview", headers={"Authorization": f"Bearer {VIEWER}"}).status_code == 200
    for header in ("Bearer nonsense", "Basic x", "Bearer"):
        assert browser.get("/api/overview", headers={"Authorization": header}).status_code == 401
    for secret, status in ((VIEWER, 403), (ADMIN, 200)):
        answer = browser.post("/do/cancel", data={"job": "j1"}, headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == status
    house.store.is_away = True
    house.guests._kept.clear()
    assert browser.get("/api/overview", headers={"Authorization": f"Bearer {VIEWER}"}).status_code == 503


@pytest.mark.parametrize(
    ("shows", "secret", "status"),
    [(True, ADMIN, 200), (True, VIEWER, 403), (False, ADMIN, 403)],
    ids=["admin", "viewer", "hidden"],
)
def test_prompts_are_for_operators_of_a_page_that_shows_them(shows: bool, secret: str, status: int) -> None:
    browser = House(login=True, show_prompts=shows).browser()
    assert _log_in(browser, secret) == 302
    answer = browser.get("/prompt?id=j1")
    assert answer.status_code == status
    assert ("what j1 was asked" in answer.text) is (status == 200)
    assert ('name="prompts"' in browser.get("/").text) is (status == 200)


def test_too_many_tries_have_to_wait_and_the_right_password_too() -> None:
    browser = House(password=_PASSWORD).browser()
    assert [_log_in(browser, "wrong password") for _ in range(10)] == [403] * 10
    assert _log_in(browser, _PASSWORD) == 429


@pytest.mark.parametrize(
    "onward", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", "\r\nX: y", ""]
)
def test_a_login_leads_nowhere_else(onward: str) -> None:
    browser = House(password=_PASSWORD).browser()
    form = {"secret": _PASSWORD, "token": _token(browser, "/login"), "next": onward}
    assert browser.post("/login", data=form).headers["Location"] == "/"


def test_the_cookie_is_for_this_page_alone_and_new_after_the_login() -> None:
    browser = House(password=_PASSWORD).browser()
    answer = browser.get("/login")
    for part in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert part in answer.headers["Set-Cookie"]
    assert "Secure" not in answer.headers["Set-Cookie"]
    before = browser.get_cookie(COOKIE)
    assert _log_in(browser, _PASSWORD) == 302
    after = browser.get_cookie(COOKIE)
    assert before is not None
    assert after is not None
    assert before.value != after.value
    secure = House().browser().get("/", base_url="https://localhost")
    assert "Secure" in secure.headers["Set-Cookie"]


def test_pages_on_two_ports_of_a_machine_do_not_log_each_other_out() -> None:
    found = []
    for host in ("localhost:8080", "localhost:8081", "[::1]:8080", "[::1]"):
        answer = House(login=True).browser().get("/login", headers={"Host": host})
        found.append(answer.headers["Set-Cookie"].partition("=")[0])
    assert found == [f"{COOKIE}_8080", f"{COOKIE}_8081", f"{COOKIE}_8080", COOKIE]


def test_no_answer_lets_a_browser_run_or_load_what_is_not_ours() -> None:
    browser = House().browser()
    for path in ("/", "/login", "/nowhere", "/static/page.css", "/api/jobs"):
        headers = browser.get(path, buffered=True).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert browser.get("/api/jobs").headers["Cache-Control"] == "no-store"


def test_markup_in_an_address_stays_text() -> None:
    browser = House(password=_PASSWORD).browser()
    text = browser.get("/login?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E").text
    assert "<script>alert" not in text
    form = {"secret": "<script>alert(1)</script>", "token": _token(browser, "/login")}
    assert "<script>alert" not in browser.post("/login", data=form).text


def test_what_goes_wrong_is_said_plainly() -> None:
    house = House()
    browser = house.browser()
    token = _token(browser)
    for error, status in ((NotAllowed("only looks"), 403), (BrokerUnavailable("Redis is away"), 503)):
        house.doing.error = error
        answer = browser.post("/do/cancel", data={"job": "j1"}, headers={"X-CSRF-Token": token})
        assert (answer.status_code, answer.json) == (status, {"error": str(error)})
    assert browser.post("/do/cancel", data={"job": "x" * 100_000}).status_code == 413
    assert browser.get("/nowhere").status_code == 404


def test_a_redis_that_hangs_holds_nobody_up_who_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol_coordinator.page.guests._KEPT_SECONDS", -1.0)
    monkeypatch.setattr("sollol_coordinator.page.guests._LOOK_SECONDS", 0.01)
    house = House(login=True)
    browser, stranger = house.browser(), house.browser()
    assert _log_in(browser, ADMIN) == 302

    async def hang(digest: str) -> tuple[ApiKey | None, float]:
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(house.store, "record", hang)
    assert browser.get("/jobs").status_code == 200
    assert _log_in(stranger, VIEWER) == 503


def test_guesses_count_while_redis_is_away() -> None:
    house = House(login=True, password=_PASSWORD)
    house.store.is_away = True
    browser = house.browser()
    assert [_log_in(browser, f"guess {number}") for number in range(11)] == [503] * 10 + [429]


def test_a_stream_ends_with_its_session() -> None:
    house = House(password=_PASSWORD)
    word = house.guests.log_in(_PASSWORD, "here")
    assert word is not None
    visitor = house.guests.visitor({}, word)
    assert visitor is not None
    assert house.guests.is_good(visitor)
    house.guests.sessions.end(word)
    assert not house.guests.is_good(visitor)


def test_a_stream_that_cannot_be_had_is_refused_and_takes_no_place() -> None:
    readers = Readers()
    streams = Streams(cast("Hub", readers), 1)
    readers.is_full = True
    with pytest.raises(TooMany):
        streams.open("overview", (), lambda: True)
    readers.is_full = False
    assert streams.open("overview", (), lambda: True) is not None


def test_a_stream_gives_its_place_back_begun_or_not() -> None:
    streams = Streams(cast("Hub", Readers()), 1)
    for _ in range(3):
        events = streams.open("overview", (), lambda: True)
        assert events is not None
        assert streams.open("overview", (), lambda: True) is None
        events.close()  # type: ignore[attr-defined]  # as a server closes what it got
        events.close()  # type: ignore[attr-defined]
