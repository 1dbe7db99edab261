"""Which HTTP requests are meant for us, by what a browser cannot be made to forge. Pure.

A page of any site can make a browser of this network send requests here, and a name of its own point at us. It cannot
choose the Host header of the one, nor the Origin of the other.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from .url import is_loopback

_HOST = re.compile(
    r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9._-]{0,252}[a-z0-9])?)(?::([0-9]{1,5}))?", re.ASCII
)
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # names of them, nothing is bound here


def names_us(hosts: Sequence[str], *, listens_on: str, allowed: Sequence[str]) -> bool:
    """Whether a request's Host headers name us.

    1. There is exactly one, and it is a plain name or address, with a plain port or none.
    2. This machine's own names are let in, and those that were allowed.
    3. Where we listen for others, the address on which we do; where that is any, each address, but no other name.

    Args:
        listens_on: the address we listen on. allowed: more names, with a port or without.
    """
    if len(hosts) != 1:  # 1
        return False
    found = _HOST.fullmatch(hosts[0].lower())
    if found is None or (found[2] is not None and not 0 < int(found[2]) < 65536):
        return False
    name, whole = found[1].strip("[]"), hosts[0].lower()
    if is_loopback(name) or {name, found[1], whole} & {each.lower() for each in allowed}:  # 2
        return True
    if is_loopback(listens_on.lower()):
        return False
    if listens_on in _WILDCARDS:  # 3
        return _is_address(name) or name == socket.gethostname().lower()
    return name == listens_on.strip("[]").lower()


def is_own_origin(origin: str, host: str) -> bool:
    """Whether an Origin header is that of pages which we serve ourselves, under the name in the Host header."""
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
