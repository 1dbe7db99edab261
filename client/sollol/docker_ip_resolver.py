"""Addresses of containers, and how the same server is reached from outside of them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .docker_engine import published

# Whether somebody answers at (host, port) within so many seconds.
Verify = Callable[[str, int, float], bool]

# What Docker gives to its networks when nobody tells it otherwise. Its last pool, 192.168.0.0/16, is left out: that is
# what homes use.
_FIRST, _LAST = ipaddress.ip_address("172.17.0.0"), ipaddress.ip_address("172.31.255.255")
_DOCKER_HOST = "host.docker.internal"


def is_docker_ip(ip: str) -> bool:
    """Whether an address is out of the ranges that Docker gives to its networks (172.17.0.0 to 172.31.255.255)."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    return address.version == 4 and int(_FIRST) <= int(address) <= int(_LAST)


def resolve_docker_ip(
    docker_ip: str,
    port: int,
    timeout: float = 1.0,
    verify_func: Verify | None = None,
    deployment_context: Mapping[str, Any] | None = None,
) -> str | None:
    """An address under which a container's server is reached from here; None = it is not.

    Tried in turn: the container's own; this machine, where a container publishes its port; the host of our own
    container, if we are in one. Only the same port counts here: `resolve_docker_ip_with_alternatives` knows others.

    Args:
        timeout: seconds for each try.
        verify_func: says whether somebody answers at (host, port) within a timeout; None = who takes a TCP connection.
        deployment_context: as `get_deployment_context` gives it; None = asked for.
    """
    found = resolve_docker_ip_with_alternatives(docker_ip, port, timeout, verify_func, deployment_context)
    return next((host for host, reached in found if reached == port), None)


def resolve_docker_ip_with_alternatives(
    docker_ip: str,
    port: int,
    timeout: float = 1.0,
    verify_func: Verify | None = None,
    deployment_context: Mapping[str, Any] | None = None,
) -> list[tuple[str, int]]:
    """All (host, port) under which a container's server is reached from here, the best first.

    Where Docker tells which ports it publishes, and as what, these come before the same port of its machine.
    """
    context = get_deployment_context() if deployment_context is None else deployment_context
    answers = verify_func or _takes_connections
    candidates = dict.fromkeys(_candidates(docker_ip, port, context))
    return [(host, at) for host, at in candidates if answers(host, at, timeout)]


def auto_resolve_ips(
    nodes: list[dict[str, str]],
    timeout: float = 1.0,
    verify_func: Verify | None = None,
    deployment_context: Mapping[str, Any] | None = None,
) -> list[dict[str, str]]:
    """The same nodes, with reachable addresses in place of containers'; what cannot be reached is left as it is."""
    resolved = []
    for node in nodes:
        if is_docker_ip(node["host"]):
            deployment_context = deployment_context or get_deployment_context()
            found = resolve_docker_ip_with_alternatives(
                node["host"], int(node.get("port", 11434)), timeout, verify_func, deployment_context
            )
            node = {**node, "host": found[0][0], "port": str(found[0][1])} if found else node
        resolved.append(dict(node))
    return resolved


def get_deployment_context() -> dict[str, Any]:
    """Where this process runs: {"mode": "docker" or "bare_metal", "is_docker", "gateway", "published"}.

    `gateway` is the address of the host of our own container; "" = we are in none, or it is not known. `published`:
    the port of Docker's machine by "address:port" of a container, where its daemon tells us.
    """
    is_docker = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
    gateway = _gateway(Path("/proc/net/route")) if is_docker else ""
    outer = {f"{each.address}:{each.port}": each.host_port for each in published() or () if each.host_port}
    mode = "docker" if is_docker else "bare_metal"
    return {"mode": mode, "is_docker": is_docker, "gateway": gateway, "published": outer}


def docker_hosts(context: Mapping[str, Any]) -> list[str]:
    """Under which names the machine of the containers may be reached from here."""
    if not context.get("is_docker"):
        return ["127.0.0.1"]
    return [_DOCKER_HOST, *([str(context["gateway"])] if context.get("gateway") else [])]


def _candidates(docker_ip: str, port: int, context: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    yield docker_ip, port
    outer = (context.get("published") or {}).get(f"{docker_ip}:{port}")
    for at in (outer, port) if outer else (port,):
        yield from ((host, int(at)) for host in docker_hosts(context))


def _takes_connections(host: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return True
    except OSError:
        return False


def _gateway(routes: Path) -> str:
    """The default route of /proc/net/route: addresses are hexadecimal, the last byte first."""
    try:
        lines = routes.read_text("ascii").splitlines()[1:]
    except OSError:
        return ""
    for words in map(str.split, lines):
        if len(words) > 2 and words[1] == "00000000":
            return str(ipaddress.ip_address(bytes.fromhex(words[2])[::-1]))
    return ""
