"""What Docker on this machine tells of its containers, where we may ask it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOCKET = Path("/var/run/docker.sock")
# It answers within milliseconds, or hangs.
_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Published:
    """A port of a container. `host_port`: under which others reach it at this machine; 0 = it is not published."""

    container: str
    address: str
    port: int
    host_port: int


def published(path: Path = SOCKET) -> list[Published] | None:
    """The TCP ports of all running containers; None = there is no Docker here, or we may not ask it."""
    connection = _Connection(path)
    try:
        connection.request("GET", "/containers/json")
        answer = connection.getresponse()
        told = json.loads(answer.read()) if answer.status == http.client.OK else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return list(_ports(told)) if isinstance(told, list) else None


def _ports(containers: list[dict[str, Any]]) -> Iterator[Published]:
    for each in containers:
        name = str((each.get("Names") or ["?"])[0]).lstrip("/")
        networks = (each.get("NetworkSettings") or {}).get("Networks") or {}
        addresses = [told["IPAddress"] for told in networks.values() if told.get("IPAddress")]
        ports = {
            (port["PrivatePort"], port.get("PublicPort", 0))
            for port in each.get("Ports") or ()
            if port.get("Type") == "tcp"
        }
        for address in addresses:
            yield from (Published(name, address, inner, outer) for inner, outer in sorted(ports))


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(str(self._path))
