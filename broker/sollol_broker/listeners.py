"""Who listens on this machine, and whether others can reach it. Needs psutil; without it nothing is known."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import SollolError
from .url import is_loopback


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port that is open here.

    Attributes:
        address: where it listens; "0.0.0.0" or "::" is everywhere.
        program: name of the process; "" when we may not see it.
    """

    address: str
    port: int
    program: str = ""


def listeners() -> list[Listener] | None:
    """All TCP ports that are open on this machine; None when that cannot be seen here."""
    try:
        import psutil
    except ImportError:
        return None
    try:
        found = {
            (each.laddr.ip, each.laddr.port): each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr
        }
    except (psutil.Error, OSError):  # macOS tells root only
        return None
    return [Listener(address, port, _program(pid)) for (address, port), pid in sorted(found.items())]


def open_to(url: str) -> tuple[str, ...]:
    """Addresses other than loopback on which the server at `url`, if it is one of this machine, listens."""
    parts = urlsplit(url)
    if not parts.hostname or not is_loopback(parts.hostname):
        return ()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return tuple(
        each.address for each in listeners() or () if each.port == port and not is_loopback(each.address)
    )


def listen(host: str, port: int, *, flag: str = "--port") -> socket.socket:
    """A socket that listens there; port 0 = a free one.

    Args:
        flag: of the command line that names the port.

    Raises:
        SollolError: nothing can listen there; the text says why, and what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise SollolError(
            f"port {port} of {host} cannot be listened on ({why}): choose another with {flag}, or end who has it"
        ) from error


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses that face other machines, that of the default route first. Nothing is sent."""
    found: dict[str, None] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # asks the routing table alone
            found[str(probe.getsockname()[0])] = None
        except OSError:
            pass
    try:
        import psutil

        adapters = psutil.net_if_addrs().values()
        found.update((ip.address, None) for ips in adapters for ip in ips if ip.family == socket.AF_INET)
    except (ImportError, OSError):
        pass
    return [each for each in found if not ipaddress.ip_address(each).is_loopback]


def _program(pid: int | None) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name()) if pid else ""
    except psutil.Error:
        return ""
