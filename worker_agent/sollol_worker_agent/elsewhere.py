"""The hardware of a machine on which our backends stand and we do not: as others tell of it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.keys import old_gpu_report
from sollol_broker.registry import Registry

from .hardware import Hardware
from .hardware.reports import from_advert, from_old_report

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of it now.

    Attributes:
        hardware: None = nothing.
        by: the node whose process there tells of it; "" = an old reporter, or nobody.
    """

    hardware: Hardware | None = None
    by: str = ""

    def node_fields(self, host: str, node: str) -> dict[str, str]:
        """Of our advert; what somebody on the machine itself tells under the same name is left to him."""
        if self.by == node:
            return {}
        known = json.dumps(self.hardware.as_dict()) if self.hardware is not None else "{}"
        return {"host": host, "os": "", "hardware": known, "addresses": "[]"}


class Elsewhere:
    """Asks Redis what is told of a host.

    1. A worker or a reporter on it, by its addresses.
    2. A reporter of SOLLOL 0.9, at the address of one of our backends, if its report is fresh.
    """

    def __init__(self, broker: Broker, host: str, backends: Sequence[str]) -> None:
        self._broker = broker
        self._host = host
        self._places = [f"{host}:{urlsplit(url).port or 80}" for url in backends]
        self._names = {host}
        self._is_resolved = False

    async def ask(self) -> Told:
        """What is known now; never raises."""
        try:
            await self._resolve()
            for node in await Registry(self._broker).nodes():
                if node.is_watched and self._names & {node.host, *node.addresses}:  # 1
                    return Told(from_advert(node.hardware), node.name)
            return Told(await self._old_report())  # 2
        except SollolError as error:
            log.debug("of %s nothing is known: %s", self._host, error)
            return Told()

    async def _old_report(self) -> Hardware | None:
        for place in self._places:
            text = await self._broker.link.call("GET", old_gpu_report(place))
            if text:
                seconds, _ = await self._broker.link.call("TIME")
                if found := from_old_report(bytes(text), now_seconds=float(seconds)):
                    return found
        return None

    async def _resolve(self) -> None:
        if self._is_resolved:
            return
        self._is_resolved = True
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
        except OSError:
            return
        self._names |= {str(each[4][0]) for each in found}
