"""What is announced of Redis on a network, and what is believed of such announcements."""

from __future__ import annotations

import socket

import pytest

from sollol_broker import announce
from sollol_broker.announce import Announcement, choose, describe, reachable, read
from sollol_broker.errors import BrokerUnavailable, SollolError
from sollol_broker.url import parse

PLAIN = Announcement("redis://10.0.0.5:6379/0", "default", ("password",))
SAFE = Announcement("rediss://redis.lan:6380/0?fabric=blue", "blue")


@pytest.mark.parametrize(
    ("url", "said", "needs"),
    [
        ("redis://me:hunter2@10.0.0.5/3", "redis://10.0.0.5:6379/3", ("password",)),
        ("redis://10.0.0.5/0?fabric=blue", "redis://10.0.0.5:6379/0?fabric=blue", ()),
        ("rediss://10.0.0.5?cert=/a.pem&key=/a.key&ca=/c.pem", "rediss://10.0.0.5:6379/0", ("certificate",)),
        ("redis+sentinel://:hunter2@a.lan/main", "redis+sentinel://a.lan:26379/main/0", ("password",)),
    ],
)  # fmt: skip
def test_an_announcement_has_the_place_and_no_secret(url: str, said: str, needs: tuple[str, ...]) -> None:
    where = parse(url)
    told = describe(where, where.hosts)
    assert (told.url, told.needs) == (said, needs)
    assert "hunter2" not in repr(told)
    heard = read(told.url, needs=",".join(told.needs), version=told.version)
    assert heard == told


@pytest.mark.parametrize(
    "url",
    [
        "redis://10.0.0.5/0?password_file=/etc/shadow",  # would be sent to whoever announced it
        "redis://10.0.0.5/0?fabric=x&payload_key_file=/etc/key",
        "rediss://10.0.0.5/0?check_hostname=no",
        "redis://me:you@10.0.0.5/0",
        "redis://127.0.0.1/0",
        "unix:///run/redis.sock",
        "http://10.0.0.5",
        "redis://10.0.0.5:port",
        "redis://[::1",
        "",
    ],
)
def test_of_what_a_stranger_announces_only_a_place_is_taken(url: str) -> None:
    assert read(url) is None


def test_a_strangers_words_reach_no_terminal() -> None:
    heard = read("redis://10.0.0.5", needs="password,\x1b[2J", version="1.0\x1b[2J")
    assert heard is not None
    assert (heard.needs, heard.version) == (("password",), "1.02J")


def test_the_one_that_is_meant_is_chosen() -> None:
    assert choose([PLAIN, PLAIN], "any") == PLAIN
    assert choose([PLAIN, SAFE], "blue") == SAFE
    assert choose([PLAIN, SAFE], "default") == PLAIN
    assert choose([PLAIN, SAFE], "any", only_tls=True) == SAFE


@pytest.mark.parametrize(
    ("found", "fabric", "only_tls", "said"),
    [
        ([], "any", False, "no fabric is announced on this network"),
        ([PLAIN], "blue", False, "no fabric 'blue' is announced"),
        ([PLAIN, SAFE], "any", False, "several are announced"),
        ([PLAIN], "any", True, "without TLS only"),
    ],
)
def test_where_it_is_not_plain_a_person_is_asked(
    found: list[Announcement], fabric: str, only_tls: bool, said: str
) -> None:
    with pytest.raises(BrokerUnavailable, match=said):
        choose(found, fabric, only_tls=only_tls)


def test_a_redis_that_others_cannot_reach_is_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SollolError, match="Unix socket"):
        reachable(parse("unix:///run/redis.sock"))
    monkeypatch.setattr(announce, "own_addresses", lambda: ["127.0.0.2"])
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]
        with pytest.raises(SollolError, match="listens on this machine alone"):
            reachable(parse(f"redis://127.0.0.1:{port}"))
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104
        port = everywhere.getsockname()[1]
        assert reachable(parse(f"redis://127.0.0.1:{port}")) == [("127.0.0.2", port)]
    assert reachable(parse("rediss://redis.invalid:6380")) == [("redis.invalid", 6380)]
