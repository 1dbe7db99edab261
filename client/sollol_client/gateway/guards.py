"""Which requests are let in at all, by their Host and where a browser says they come from. Pure.

A page of any site can make a browser of this network send requests here, and a name of its own point at us. It cannot
choose the Host header of the one, nor the Origin of the other.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from .config import GatewayConfig, is_loopback

_HOST = re.compile(
    r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9._-]{0,252}[a-z0-9])?)(?::([0-9]{1,5}))?", re.ASCII
)
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # names of them, nothing is bound here
_SAFE = frozenset({"GET", "HEAD"})


def host_allowed(hosts: Sequence[str], config: GatewayConfig) -> bool:
    """Whether a request's Host headers name us.

    1. There is exactly one, and it is a plain name or address, with a plain port or none.
    2. This machine's own names are let in, and those that were allowed.
    3. Where we listen for others, the address on which we do; where that is any, each address, but no other name.
    """
    if len(hosts) != 1:  # 1
        return False
    found = _HOST.fullmatch(hosts[0].lower())
    if found is None or (found[2] is not None and not 0 < int(found[2]) < 65536):
        return False
    name, whole = found[1].strip("[]"), hosts[0].lower()
    if is_loopback(name) or {name, found[1], whole} & {each.lower() for each in config.hosts}:  # 2
        return True
    if config.is_loopback:
        return False
    if config.host in _WILDCARDS:  # 3
        return _is_address(name) or name == socket.gethostname().lower()
    return name == config.host.strip("[]").lower()


def origin_allowed(method: str, headers: Mapping[str, str], config: GatewayConfig) -> bool:
    """Whether a request comes from no page, from one of ours, or from one that was allowed.

    1. An Origin has to be allowed, or our own.
    2. Without one, a browser's word that it comes from another site keeps out what is not a mere look.
    """
    origin = headers.get("origin")
    if origin is not None:  # 1
        return origin in config.origins or _is_own(origin, headers.get("host", ""))
    return method in _SAFE or headers.get("sec-fetch-site", "none") in ("none", "same-origin")  # 2


def cors_headers(method: str, headers: Mapping[str, str], config: GatewayConfig) -> dict[str, str]:
    """What lets a page of an allowed site read the answer; nothing for others."""
    origin = headers.get("origin")
    if origin is None or origin not in config.origins:
        return {}
    found = {"Access-Control-Allow-Origin": origin, "Vary": "Origin",
             "Access-Control-Expose-Headers": "X-Sollol-Job, X-Sollol-Node, X-Sollol-Attempts, "
                                              "X-Sollol-Queue-Wait, Retry-After"}  # fmt: skip
    if method == "OPTIONS":
        found["Access-Control-Allow-Methods"] = "GET, POST, DELETE, HEAD, OPTIONS"
        found["Access-Control-Allow-Headers"] = headers.get("access-control-request-headers", "")[:1000]
        found["Access-Control-Max-Age"] = "600"
    return found


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{host}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
