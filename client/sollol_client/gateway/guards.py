"""Which requests are let in at all, by their Host and where a browser says they come from. Pure.

A page of any site can make a browser of this network send requests here, and a name of its own point at us. It cannot
choose the Host header of the one, nor the Origin of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sollol_broker.front_door import is_own_origin, names_us

from .config import GatewayConfig

_SAFE = frozenset({"GET", "HEAD"})


def host_allowed(hosts: Sequence[str], config: GatewayConfig) -> bool:
    """Whether a request's Host headers name us; see `names_us`."""
    return names_us(hosts, listens_on=config.host, allowed=config.hosts)


def origin_allowed(method: str, headers: Mapping[str, str], config: GatewayConfig) -> bool:
    """Whether a request comes from no page, from one of ours, or from one that was allowed.

    1. An Origin has to be allowed, or our own.
    2. Without one, a browser's word that it comes from another site keeps out what is not a mere look.
    """
    origin = headers.get("origin")
    if origin is not None:  # 1
        return origin in config.origins or is_own_origin(origin, headers.get("host", ""))
    return method in _SAFE or headers.get("sec-fetch-site", "none") in ("none", "same-origin")  # 2


def cors_headers(method: str, headers: Mapping[str, str], config: GatewayConfig) -> dict[str, str]:
    """What lets a page of an allowed site read the answer; nothing for others."""
    origin = headers.get("origin")
    if origin is None or origin not in config.origins:
        return {}
    found = {"Access-Control-Allow-Origin": origin, "Vary": "Origin",
             "Access-Control-Expose-Headers": "X-Sollol-Job, X-Sollol-Node, X-Sollol-Attempts, "
                                              "X-Sollol-Queue-Wait, Retry-After, RateLimit-Limit, "
                                              "RateLimit-Remaining, RateLimit-Reset"}  # fmt: skip
    if method == "OPTIONS":
        found["Access-Control-Allow-Methods"] = "GET, POST, DELETE, HEAD, OPTIONS"
        found["Access-Control-Allow-Headers"] = headers.get("access-control-request-headers", "")[:1000]
        found["Access-Control-Max-Age"] = "600"
    return found
