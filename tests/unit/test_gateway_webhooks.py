"""Where webhooks may go. Nothing is called; the resolver is the test's."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from sollol_broker.errors import InvalidJob
from sollol_client.gateway.refusals import Refused
from sollol_client.gateway.webhook_address import is_public, resolved
from sollol_client.gateway.webhook_signing import secret_bytes, signed_headers

_PUBLIC = "93.184.216.34"
_REAL = {
    "hooks.example.org": [_PUBLIC],
    "both.example.org": [_PUBLIC, "10.0.0.1"],
    "inside.example.org": ["10.0.0.1"],
}

_ODD = {
    **dict.fromkeys(
        ("2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost", "localtest.me"), "127.0.0.1"
    ),
    "0": "0.0.0.0",  # noqa: S104  # nothing is bound here
    "metadata": "169.254.169.254",
}


async def _resolve(name: str, port: int) -> Sequence[str]:
    """As getaddrinfo reads what it is given: numbers of any kind become addresses."""
    try:
        return [str(ipaddress.ip_address(name))]
    except ValueError:
        pass
    return _REAL.get(name) or ([_ODD[name]] if name in _ODD else [])


TRICKS = [
    "http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://0x7f000001/", "http://127.1/",
    "http://0177.0.0.1/", "http://0/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
    "http://[::]/", "http://[fe80::1]/", "http://[fc00::1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/",
    "http://169.254.169.254/latest/meta-data", "http://metadata/", "http://10.0.0.1/", "http://192.168.0.1/",
    "http://172.16.0.1/", "http://100.64.0.1/", "http://224.0.0.1/", "http://255.255.255.255/", "http://0.0.0.0/",
    "http://inside.example.org/", "http://both.example.org/", "http://localtest.me/",
    "http://hooks.example.org@127.0.0.1/", "http://127.0.0.1\\@hooks.example.org/",
    "http://hooks.example.org\\@10.0.0.1/",
    "http://user:pw@hooks.example.org/", "http://hooks.example.org:80@10.0.0.1/", "ftp://hooks.example.org/",
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_SET", "javascript:alert(1)", "//hooks.example.org/",
    "hooks.example.org",
    "http:///x", "http://", "http:hooks.example.org", "http://hooks.example.org:0/", "http://hooks.example.org:99999/",
    "http://hooks.example.org:x/", "http://hooks.example.org /", "http://hooks.example.org/\r\nX: y",
    "http://hooks.example.org/\t",
    " http://hooks.example.org/", "http://hooks.example.org/\x00", "http://hooks.example.org%2f@10.0.0.1/",
    "http://unknown.example.org/",
    "http://hooks.example.org./", "http://-hooks/", "http://ho_oks/", "http://hööks.example.org/", "http://127。0。0。1/",
    "http://[::1%25lo]/", "http://[::1/", "http://::1/", "", "x" * 3000, "http://hooks.example.org/" + "a" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("url", TRICKS)
async def test_no_trick_leads_inside(url: str) -> None:
    with pytest.raises(Refused, match="webhook") as refused:
        await resolved(url, _resolve)
    assert refused.value.status == 400


def test_there_are_sixty_tricks() -> None:
    assert len(set(TRICKS)) >= 60


@pytest.mark.parametrize("given", [None, 5, [], {}, b"http://hooks.example.org/"])
async def test_only_text_is_an_address(given: object) -> None:
    with pytest.raises(Refused):
        await resolved(given, _resolve)


async def test_the_call_goes_to_the_address_that_was_looked_at() -> None:
    address = await resolved("https://hooks.example.org:8443/done?x=1", _resolve)
    assert address.url == f"https://{_PUBLIC}:8443/done?x=1"
    assert (address.host, address.name) == ("hooks.example.org:8443", "hooks.example.org")


async def test_what_an_operator_allows_may_be_inside() -> None:
    address = await resolved("http://inside.example.org/", _resolve, ("inside.example.org",))
    assert address.url == "http://10.0.0.1:80/"


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_the_internet_is_public(address: str) -> None:
    assert is_public(address)


def test_a_call_is_signed_as_standard_webhooks_has_it() -> None:
    # The example of their specification.
    secret = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = signed_headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert "webhook-signature" not in signed_headers(b"", "x", 1, body)


@pytest.mark.parametrize("text", ["short", "whsec_c2hvcnQ=", "whsec_no base64"])
def test_a_secret_that_will_not_do(text: str) -> None:
    with pytest.raises(InvalidJob, match="webhook secret"):
        secret_bytes(text)
