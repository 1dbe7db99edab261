"""Who is let in: hosts, origins, keys. Tables; nothing is sent."""

from __future__ import annotations

import pytest

from sollol_broker.api_keys import KeyRole
from sollol_broker.errors import InvalidJob
from sollol_client.gateway.config import GatewayConfig
from sollol_client.gateway.doorkeeper import secret_in
from sollol_client.gateway.guards import cors_headers, host_allowed, origin_allowed
from sollol_client.gateway.roles import role_for

HERE = GatewayConfig()
NAMED = GatewayConfig(hosts=("llm.example.org", "box:8000"))
ANY = "0.0.0.0"  # noqa: S104  # nothing is bound here
OPEN = GatewayConfig(host=ANY)
ONE = GatewayConfig(host="192.168.1.5")

TRICKS = [
    "evil.com", "evil.com:8000", "evil.com.", "localhost.", "localhost.evil.com", "127.0.0.1.evil.com",
    "127.0.0.1.nip.io", "evil.com#localhost", "localhost#evil.com", "localhost@evil.com", "evil.com@localhost",
    "localhost:8000@evil.com", "localhost:", "localhost:abc", "localhost:0", "localhost:65536", "localhost:99999999",
    "localhost:8000:80", "localhost:-1", "localhost: 8000", " localhost", "localhost ", "localhost,evil.com",
    "localhost/evil.com", "localhost\\evil.com", "localhost?", "http://localhost", "0x7f000001", "2130706433", "127.1",
    "017700000001", "192.168.1.5", "10.0.0.1:8000", ANY, "[::]", "[::1", "::1]", "[::1].evil.com", "[evil.com]",
    "l\u043ecalhost", "localhost\x00", "loca\tlhost", "", "-localhost", "_", "169.254.169.254", "localhost%00.evil.com",
    "[::ffff:10.0.0.1]", "*", "localhost\r\nX: y",
]  # fmt: skip


@pytest.mark.parametrize("host", TRICKS)
def test_no_other_host_is_let_in(host: str) -> None:
    assert not host_allowed([host], HERE)


def test_there_are_at_least_forty_tricks() -> None:
    assert len(set(TRICKS)) >= 40


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.com"]])
def test_there_is_exactly_one_host(hosts: list[str]) -> None:
    assert not host_allowed(hosts, HERE)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "127.9.9.9", "[::1]:80"]
)
def test_this_machine_s_own_names_are_let_in(host: str) -> None:
    assert host_allowed([host], HERE)


def test_names_that_were_allowed_are_let_in_with_their_port_or_any() -> None:
    assert host_allowed(["LLM.example.org:9"], NAMED)
    assert host_allowed(["box:8000"], NAMED)
    assert not host_allowed(["box:8001"], NAMED)
    assert not host_allowed(["box"], NAMED)


def test_where_others_may_reach_it_addresses_are_let_in_and_names_are_not() -> None:
    assert host_allowed(["192.168.1.7:8000"], OPEN)
    assert host_allowed(["192.168.1.5"], ONE)
    assert not host_allowed(["evil.com"], OPEN)
    assert not host_allowed(["192.168.1.6"], ONE)


ALLOWING = GatewayConfig(origins=("https://chat.example.org",))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize(
    "origin",
    ["https://evil.com", "null", "http://localhost:3000", "http://127.0.0.1:8001", "https://chat.example.org.evil.com",
     "https://chat.example.org:444", "", "file://", "http://[bad"],
)  # fmt: skip
def test_pages_of_other_sites_may_do_nothing(method: str, origin: str) -> None:
    headers = {"origin": origin, "host": "127.0.0.1:8000", "user-agent": "curl/8"}
    assert not origin_allowed(method, headers, ALLOWING)
    assert not cors_headers(method, headers, ALLOWING)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_a_browser_s_word_counts_without_an_origin(method: str, site: str) -> None:
    assert not origin_allowed(method, {"sec-fetch-site": site, "user-agent": "python"}, HERE)
    assert origin_allowed(method, {"sec-fetch-site": "same-origin"}, HERE)
    assert origin_allowed(method, {}, HERE)


def test_our_own_pages_and_allowed_sites_may_call() -> None:
    assert origin_allowed("POST", {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, HERE)
    allowed = {"origin": "https://chat.example.org", "host": "127.0.0.1:8000"}
    assert origin_allowed("POST", allowed, ALLOWING)
    assert (
        cors_headers("POST", allowed, ALLOWING)["Access-Control-Allow-Origin"] == "https://chat.example.org"
    )
    assert "DELETE" in cors_headers("OPTIONS", allowed, ALLOWING)["Access-Control-Allow-Methods"]


def test_no_setting_lets_every_page_in() -> None:
    with pytest.raises(InvalidJob, match="origins"):
        GatewayConfig(origins=("*",))


@pytest.mark.parametrize(
    ("host", "needs"), [("127.0.0.1", False), ("::1", False), ("localhost", False), (ANY, True),
                        ("::", True), ("192.168.1.5", True), ("box", True), ("", True)],
)  # fmt: skip
def test_whoever_is_reached_from_elsewhere_needs_keys(host: str, needs: bool) -> None:
    assert GatewayConfig(host=host).needs_keys is needs


def test_a_config_survives_the_way_to_another_process() -> None:
    assert GatewayConfig.from_json(NAMED.to_json()) == NAMED


@pytest.mark.parametrize(
    "path",
    [
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/copy",
        "/api/delete",
        "/api/blobs/sha256:0",
        "/api/pull/",
    ],
)
def test_what_changes_nodes_is_for_admins(path: str) -> None:
    assert role_for(path) is KeyRole.ADMIN


def test_a_path_that_nobody_thought_of_is_not_open() -> None:
    assert role_for("/api/brand-new") is KeyRole.APP
    assert role_for("//") is KeyRole.APP
    assert role_for("/livez") is None


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"authorization": "Basic abc"}, ""),
        ({"authorization": "abc"}, ""),
        ({"authorization": "Bearer "}, ""),
        ({"x-api-key": "abc"}, "abc"),
        ({}, ""),
    ],
)
def test_a_key_is_shown_as_clients_show_it(headers: dict[str, str], secret: str) -> None:
    assert secret_in(headers) == secret
