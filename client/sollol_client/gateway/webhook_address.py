"""Where a webhook may go: addresses on the internet, and those that were allowed. Pure but for the resolver handed in.

The name is resolved once, each address is looked at, and the call goes to one of those addresses: a name that is asked
again may answer differently. Nothing of the given text but what is taken apart here reaches the HTTP client.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from .refusals import Refused

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
_PLAIN = re.compile(r"[!#-;=?-\[\]_a-z{}~]{1,2000}", re.ASCII | re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII | re.IGNORECASE)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to call.

    Attributes:
        url: with the address of the machine in place of its name. host: for the Host header. name: for TLS.
    """

    url: str
    host: str
    name: str


async def resolved(text: object, resolve: Resolver, allowed: Sequence[str] = ()) -> Address:
    """Take a webhook's URL apart and find its machine.

    Args:
        allowed: names and addresses that may be called wherever they are.

    Raises:
        Refused: 400, it is no http or https address, or not on the internet.
    """
    if not isinstance(text, str) or not _PLAIN.fullmatch(text) or "@" in text or "\\" in text:
        raise _refusal("a plain http or https address without a login is needed")
    try:
        parts = urlsplit(text)
        usual = {"http": 80, "https": 443}.get(parts.scheme, 0)
        port = usual if parts.port is None else parts.port
    except ValueError:
        raise _refusal("it is malformed") from None
    name = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not port or not (_NAME.fullmatch(name) or _is_ip(name)):
        raise _refusal("a plain http or https address is needed")
    addresses = await resolve(name, port)
    if not addresses:
        raise _refusal(f"{name} has no address")
    if name not in allowed and not all(is_public(each) for each in addresses):
        raise _refusal(f"{name} is not on the internet; an operator may allow it")
    target = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(f"{parts.scheme}://{target}:{port}{path}", parts.netloc, name)


def is_public(address: str) -> bool:
    """Whether an address lies on the internet, and not behind another that does not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    inner: list[ipaddress.IPv4Address | ipaddress.IPv6Address | None] = [found]
    if isinstance(found, ipaddress.IPv6Address):
        inner += [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _NAT64:
            inner.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    return all(each.is_global and not each.is_multicast for each in inner if each is not None)


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(why: str) -> Refused:
    return Refused(400, f"webhook: {why}", field="webhook")
