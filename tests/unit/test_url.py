"""One URL says where Redis is; no secret of it is ever shown."""

from __future__ import annotations

import contextlib
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.url import DEFAULT_URL, BrokerUrl, Tls, parse
from sollol_broker.words import Durability

_HA = Durability.HA
_SECRET = "hunter2"  # noqa: S105  # the canary that must show nowhere


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (DEFAULT_URL, BrokerUrl("single", (("127.0.0.1", 6379),))),
        ("redis://", BrokerUrl("single", (("127.0.0.1", 6379),))),
        ("redis://box", BrokerUrl("single", (("box", 6379),))),
        ("redis://box:7000/3", BrokerUrl("single", (("box", 7000),), db=3)),
        ("redis://box?db=4", BrokerUrl("single", (("box", 6379),), db=4)),
        ("redis://[::1]:7000/0", BrokerUrl("single", (("::1", 7000),))),
        ("redis://[fe80::2]", BrokerUrl("single", (("fe80::2", 6379),))),
        ("redis://:hunter2@box", BrokerUrl("single", (("box", 6379),), password=_SECRET)),
        ("redis://me:hunter2@box", BrokerUrl("single", (("box", 6379),), username="me", password=_SECRET)),
        ("redis://:%68unter%32@box", BrokerUrl("single", (("box", 6379),), password=_SECRET)),
        ("redis://box?fabric=cell-2", BrokerUrl("single", (("box", 6379),), fabric="cell-2")),
        ("rediss://box", BrokerUrl("single", (("box", 6379),), tls=Tls())),
        (
            "rediss://box?ca=/c.pem&cert=/x.pem&key=/k.pem&check_hostname=no",
            BrokerUrl("single", (("box", 6379),), tls=Tls("/c.pem", "/x.pem", "/k.pem", False)),
        ),
        (
            "rediss://box?ssl_ca_certs=/c.pem&ssl_certfile=/x.pem&ssl_keyfile=/k.pem&ssl_check_hostname=False",
            BrokerUrl("single", (("box", 6379),), tls=Tls("/c.pem", "/x.pem", "/k.pem", False)),
        ),
        ("unix:///run/redis.sock", BrokerUrl("unix", path="/run/redis.sock")),
        ("unix:///run/a%20b.sock?db=2&fabric=x", BrokerUrl("unix", path="/run/a b.sock", db=2, fabric="x")),
        ("unix://:hunter2@/run/a@b.sock", BrokerUrl("unix", path="/run/a@b.sock", password=_SECRET)),
        (
            "redis+sentinel://a,b:26380,[::1]:5/main/2",
            BrokerUrl("sentinel", (("a", 26379), ("b", 26380), ("::1", 5)), service="main", db=2, durability=_HA),
        ),
        (
            "rediss+sentinel://:hunter2@a/main",
            BrokerUrl("sentinel", (("a", 26379),), service="main", password=_SECRET, tls=Tls(), durability=_HA),
        ),
        ("redis+cluster://a,b:7001", BrokerUrl("cluster", (("a", 6379), ("b", 7001)), durability=_HA)),
        ("redis+cluster://a/0", BrokerUrl("cluster", (("a", 6379),), durability=_HA)),
        ("rediss+cluster://me@a", BrokerUrl("cluster", (("a", 6379),), username="me", tls=Tls(), durability=_HA)),
    ],
)  # fmt: skip
def test_every_form(text: str, url: BrokerUrl) -> None:
    parsed = parse(text)
    assert parsed == url
    assert parsed.password == url.password  # compared, though hidden from repr
    assert _SECRET not in f"{parsed} {parsed!r}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (DEFAULT_URL, DEFAULT_URL),
        ("redis://:hunter2@[::1]:7000/1", "redis://:***@[::1]:7000/1"),
        ("rediss://me:hunter2@box", "rediss://me:***@box:6379/0"),
        ("unix://:hunter2@/run/s?db=1", "unix://:***@/run/s?db=1"),
        ("redis+sentinel://:hunter2@a,b/main", "redis+sentinel://:***@a:26379,b:26379/main/0"),
        ("rediss+cluster://:hunter2@a", "rediss+cluster://:***@a:6379"),
    ],
)
def test_how_it_is_shown(text: str, shown: str) -> None:
    assert str(parse(text)) == shown


def test_the_password_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret@home"
    file.write_text(f"{_SECRET}\n")
    assert parse(f"redis://box?password_file={file}").password == _SECRET
    assert parse("redis://box", environ={"SOLLOL_REDIS_PASSWORD_FILE": str(file)}).password == _SECRET
    assert parse(f"redis+sentinel://a/main?sentinel_password_file={file}").sentinel_password == _SECRET
    assert _SECRET not in repr(parse(f"redis+sentinel://a/main?sentinel_password_file={file}"))


def test_how_durable_it_is_says_the_url_else_the_environment_else_the_kind_of_servers() -> None:
    ha, local = {"SOLLOL_DURABILITY": "ha"}, {"SOLLOL_DURABILITY": "local"}
    assert parse("redis://box").durability is Durability.LOCAL
    assert parse("redis://box", environ=ha).durability is Durability.HA
    assert parse("redis://box?durability=ha", environ=local).durability is Durability.HA
    assert parse("redis+sentinel://box/main").durability is Durability.HA
    assert parse("redis+sentinel://box/main?durability=local").durability is Durability.LOCAL
    with pytest.raises(BrokerUnavailable, match="none of local, ha"):
        parse("redis://box?durability=paper")


def test_the_password_may_stand_in_the_environment() -> None:
    environ = {"SOLLOL_REDIS_PASSWORD": _SECRET}
    assert parse("redis://box", environ=environ).password == _SECRET
    assert parse("redis://:own@box", environ=environ).password != _SECRET
    assert parse("redis://box").password is None
    assert parse("redis://box", environ={"SOLLOL_REDIS_PASSWORD": ""}).password is None


def test_certificates_may_be_named_in_the_environment() -> None:
    environ = {"SOLLOL_REDIS_CA": "/c.pem", "SOLLOL_REDIS_CERT": "/x.pem", "SOLLOL_REDIS_KEY": "/k.pem"}
    assert parse("rediss://box", environ=environ).tls == Tls("/c.pem", "/x.pem", "/k.pem")
    assert parse("rediss://box?ca=/own.pem", environ=environ).tls == Tls("/own.pem", "/x.pem", "/k.pem")
    assert parse("redis://box", environ=environ).tls is None


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("redis://box", True),
        ("redis://me@box", True),  # a name alone opens nothing that is locked
        ("rediss://box", True),  # it shows its certificate, and takes everybody
        ("redis+sentinel://box/main", True),
        ("redis+cluster://localhost,box", True),
        ("redis://0.0.0.0", True),
        ("redis://:hunter2@box", False),
        ("rediss://box?cert=/x.pem&key=/k.pem", False),
        ("redis://localhost", False),
        ("redis://[::1]", False),
        ("unix:///run/redis.sock", False),
    ],
)
def test_which_redis_is_open_to_the_network(text: str, is_refused: bool) -> None:
    with pytest.raises(BrokerUnavailable, match="--insecure") if is_refused else contextlib.nullcontext():
        parse(text).refuse_open()


def test_a_password_file_that_cannot_serve(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"hunter2\xff")
    for path, why in ((empty, "is empty"), (binary, "not UTF-8"), (tmp_path / "no", "cannot be read")):
        with pytest.raises(BrokerUnavailable, match=why) as caught:
            parse(f"redis://box?password_file={path}")
        assert _SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "box",
        "box:6379",
        "http://:hunter2@box",
        "hunter2://box",
        "unix://",
        "unix://run/redis.sock",
        "unix+cluster:///run/redis.sock",
        "redis+hunter2://box",
        "redis://box:port",
        "redis://box:0",
        "redis://box:65536",
        "redis://box:99999999999999999999",
        "redis://box:²",
        "redis://box/hunter2",
        "redis://box?db=-1",
        "redis://::1",
        "redis://[::1",
        "redis://[hunter2]@box",
        "redis://[::1]hunter2",
        "redis://:[hunter2]@box",
        "redis://:hunter2\u2100@box",
        "redis://box?hunter2=1",
        "redis://box?hunter2",
        "redis+sentinel://a",
        "redis+cluster://a/3",
        # A password that nobody escaped: the rest of it must not be read as an address, or shown as a port.
        "redis://:hunter2/x@box",
        "redis://:hunter2#x@box",
        "redis://:hunter2?x@box",
        "redis://:123/hunter2@box",
        "redis://:123#hunter2@box",
        "redis://:123?hunter2@box",
        "redis://:123?fabric=hunter2&hunter2=@box",
        "redis://box?fabric=two words",
    ],
)
def test_a_bad_url_is_refused_without_its_secret(text: str) -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        parse(text)
    assert _SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (
        text,
        f"redis://{text}",
        f"redis://box/{text}",
        f"unix://{text}",
        f"redis+sentinel://{text}",
    ):
        with contextlib.suppress(BrokerUnavailable):
            str(parse(candidate))


# With a sign that no other part of a URL has, or a drawn word such as "hostname" would show anyway.
@given(st.text(min_size=8, max_size=30).map("\u2603{}".format))
def test_a_password_never_shows(secret: str) -> None:
    for form in (
        "redis://me:{}@box",
        "unix://:{}@/s",
        "redis+sentinel://:{}@a/main",
        "rediss+cluster://:{}@a",
    ):
        url = parse(form.format(quote(secret, safe="")))
        assert url.password == secret
        assert secret not in str(url)
        assert repr(secret)[1:-1] not in repr(url)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("redis://localhost", True),
        ("redis://127.0.0.2", True),
        ("redis://[::1]", True),
        ("redis://[::ffff:127.0.0.1]", True),
        ("redis://127.evil.example", False),
        ("redis://0.0.0.0", False),
        ("unix:///s", True),
        ("redis://box", False),
        ("redis+cluster://localhost,box", False),
    ],
)
def test_is_loopback(text: str, answer: bool) -> None:
    assert parse(text).is_loopback is answer
