"""Where Redis is: one URL for a single server, a Sentinel group or a Cluster.

    redis://[user:password@]host[:6379][/db]          rediss://… with TLS
    unix:///run/redis.sock[?db=0]
    redis+sentinel://host[:26379][,host…]/SERVICE[/db]   rediss+sentinel://…
    redis+cluster://host[:6379][,host…]                  rediss+cluster://…

Options after "?": `fabric=NAME`, `durability=local|ha`, `password_file=PATH`, `sentinel_password_file=PATH`,
`payload_key_file=PATH`, and for TLS `ca=PATH`, `cert=PATH`, `key=PATH`, `check_hostname=no`; redis-py's `ssl_ca_certs`,
`ssl_certfile`, `ssl_keyfile` and `ssl_check_hostname` mean the same.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import BrokerUnavailable, InvalidJob
from .names import check_name
from .seal import read_keys
from .words import Durability

DEFAULT_URL = "redis://127.0.0.1:6379/0"
_OPTIONS = {
    "fabric",
    "payload_key_file",
    "durability",
    "password_file",
    "sentinel_password_file",
    "ca",
    "cert",
    "key",
    "check_hostname",
    "db",
}
_OTHER_NAMES = {
    "ssl_ca_certs": "ca",
    "ssl_certfile": "cert",
    "ssl_keyfile": "key",
    "ssl_check_hostname": "check_hostname",
}
_NO = ("no", "false", "0")


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS: paths of the CA, and of our own certificate for mTLS."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    check_hostname: bool = True


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """A parsed URL. `str()` of it shows no secret; neither does its repr.

    Attributes:
        mode: how the primary is found.
        hosts: (host, port) of the server, the sentinels, or some nodes of the cluster.
        path: of the unix socket.
        service: the sentinels' name for the primary.
        fabric: name of the fabric; "" is the default one.
        payload_keys: with which prompts and answers are encrypted; none = not at all.
        durability: when a submitted job and an answer count as done.
    """

    mode: Literal["single", "unix", "sentinel", "cluster"]
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    db: int = 0
    service: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    fabric: str = ""
    payload_keys: tuple[bytes, ...] = field(default=(), repr=False)
    durability: Durability = Durability.LOCAL

    def __str__(self) -> str:
        secret = f"{self.username or ''}:***@" if self.password or self.username else ""
        if self.mode == "unix":
            return f"unix://{secret}{self.path}" + (f"?db={self.db}" if self.db else "")
        scheme = "rediss" if self.tls else "redis"
        where = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        if self.mode == "sentinel":
            return f"{scheme}+sentinel://{secret}{where}/{self.service}/{self.db}"
        if self.mode == "cluster":
            return f"{scheme}+cluster://{secret}{where}"
        return f"{scheme}://{secret}{where}/{self.db}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached without leaving this machine."""
        return self.mode == "unix" or all(is_loopback(host) for host, _ in self.hosts)

    def refuse_open(self) -> None:
        """Refuse a Redis that others reach, too, and that asks neither for a password nor for a certificate.

        Raises:
            BrokerUnavailable: it is such a one.
        """
        if not (self.is_loopback or self.password or (self.tls and self.tls.cert)):
            raise BrokerUnavailable(
                f"{self} is on the network and we have no password for it: whoever reaches it could read every "
                "prompt. Set requirepass, or users (`sollol acl`), and give us the password in the URL or in "
                "SOLLOL_REDIS_PASSWORD; where you trust the whole network, --insecure goes on without",
                refused=True,
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host of that name."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def parse(url: str, *, environ: Mapping[str, str] | None = None) -> BrokerUrl:
    """Read a URL; the password may also come from a file or from `environ`.

    Args:
        url: see the top of this file.
        environ: where to look for SOLLOL_REDIS_USERNAME when the URL names no user, for SOLLOL_REDIS_PASSWORD and
            SOLLOL_REDIS_PASSWORD_FILE when it has no password, for SOLLOL_DURABILITY when it says none, with TLS for
            SOLLOL_REDIS_CA, _CERT and _KEY, and for SOLLOL_PAYLOAD_KEY_FILE; None = nowhere.

    Raises:
        BrokerUnavailable: the URL makes no sense; the message never repeats its secrets.
    """
    login, _, hosts = re.split(r"[/?#]", url.partition("//")[2], maxsplit=1)[0].rpartition("@")
    if set(login) & set("[]") or hosts.count("[") != hosts.count("]"):
        raise _bad("the part between // and / is malformed")
    try:
        # Escaped, since newer Pythons refuse brackets that do not enclose the whole of the host.
        parts = urlsplit(url.replace("[", "%5B").replace("]", "%5D"))
    except ValueError:  # its text may quote the password
        raise _bad("the part between // and / is malformed") from None
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") or kind not in ("", "sentinel", "cluster"):
        raise _bad("its scheme is none of redis, rediss, unix, redis+sentinel, redis+cluster")
    if parts.fragment or (scheme != "unix" and "@" in parts.path):
        raise _bad("in a password, write # as %23, / as %2F, ? as %3F and @ as %40")
    given = parse_qs(parts.query, keep_blank_values=True)
    options = {_OTHER_NAMES.get(name, name): values[-1] for name, values in given.items()}
    if not set(options) <= _OPTIONS:
        raise _bad(f"unknown option; known are {', '.join(sorted(_OPTIONS))}")
    if fabric := options.get("fabric", ""):
        try:
            check_name(fabric, "fabric")
        except InvalidJob as error:
            raise _bad(str(error)) from None
    userinfo, _, where = parts.netloc.rpartition("@")
    where = where.replace("%5B", "[").replace("%5D", "]")
    username, _, secret = userinfo.partition(":")
    password = unquote(secret) or _password(options.get("password_file"), environ or {})
    common: dict[str, Any] = {
        "username": unquote(username) or (environ or {}).get("SOLLOL_REDIS_USERNAME") or None,
        "password": password,
        "fabric": fabric,
        "payload_keys": _payload_keys(options.get("payload_key_file"), environ or {}),
        "durability": _durability(
            options.get("durability") or (environ or {}).get("SOLLOL_DURABILITY"), kind
        ),
    }
    if scheme == "unix":
        if not parts.path or where or kind:
            raise _bad("unix:// needs the path of a socket, such as unix:///run/redis.sock")
        return BrokerUrl("unix", path=unquote(parts.path), db=_number(options.get("db", "0"), "db"), **common)
    tls = None
    if scheme == "rediss":
        files = {
            name: options.get(name) or (environ or {}).get(f"SOLLOL_REDIS_{name.upper()}") or None
            for name in ("ca", "cert", "key")
        }
        tls = Tls(**files, check_hostname=options.get("check_hostname", "").lower() not in _NO)
    hosts = tuple(_host(each, 26379 if kind == "sentinel" else 6379) for each in where.split(","))
    path = [unquote(part) for part in parts.path.split("/") if part]
    if kind == "sentinel":
        if not path:
            raise _bad("a Sentinel URL names its service: redis+sentinel://host:26379/mymaster")
        db = _number(path[1] if len(path) > 1 else "0", "db")
        secret_file = options.get("sentinel_password_file")
        sentinel_password = _read_secret(secret_file) if secret_file else None
        return BrokerUrl(
            "sentinel", hosts, db=db, service=path[0], tls=tls, sentinel_password=sentinel_password, **common
        )
    if kind == "cluster":
        if path not in ([], ["0"]):
            raise _bad("a Cluster has database 0 only")
        return BrokerUrl("cluster", hosts, tls=tls, **common)
    db = _number(path[0] if path else options.get("db", "0"), "db")
    return BrokerUrl("single", hosts, db=db, tls=tls, **common)


def _bad(why: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"the Redis URL makes no sense: {why}")


def _host(text: str, default_port: int) -> tuple[str, int]:
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in text:
        host, _, port = text.rpartition(":")
    if ":" in host and not text.startswith("["):
        raise _bad("an IPv6 address stands in brackets, such as redis://[::1]:6379")
    number = _number(port, "port") if port else default_port
    if not 0 < number < 65536:
        raise _bad("the port is not in 1..65535")
    return host or "127.0.0.1", number


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _bad(f"the {what} is not a number")
    return int(text)


def _durability(text: str | None, kind: str) -> Durability:
    """As told; else what the servers are there for: whoever runs several of them means to survive one."""
    try:
        return Durability(text) if text else Durability.HA if kind else Durability.LOCAL
    except ValueError:
        raise _bad(f"the durability is none of {', '.join(Durability)}") from None


def _password(path: str | None, environ: Mapping[str, str]) -> str | None:
    path = path or environ.get("SOLLOL_REDIS_PASSWORD_FILE")
    return _read_secret(path) if path else environ.get("SOLLOL_REDIS_PASSWORD") or None


def _payload_keys(path: str | None, environ: Mapping[str, str]) -> tuple[bytes, ...]:
    path = path or environ.get("SOLLOL_PAYLOAD_KEY_FILE")
    return read_keys(_read_secret(path, "payload key")) if path else ()


def _read_secret(path: str, what: str = "password") -> str:
    try:
        secret = Path(path).read_text("utf-8").strip()
    except OSError as error:
        raise BrokerUnavailable(f"the {what} file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BrokerUnavailable(f"the {what} file {path} is not UTF-8 text") from None
    if not secret:
        raise BrokerUnavailable(f"the {what} file {path} is empty")
    return secret
