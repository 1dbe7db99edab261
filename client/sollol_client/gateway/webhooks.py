"""Tells addresses of the end of their jobs and batches."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from sollol_broker.errors import SollolError

from ..tasks import Tasks
from .config import GatewayConfig
from .refusals import Refused
from .replies import as_json
from .running import Running
from .webhook_address import Address, Resolver, resolved
from .webhook_signing import secret_bytes, signed_headers

log = logging.getLogger(__name__)

_TRIES = 3
_PAUSE_SECONDS = 2.0
_TIMEOUT_SECONDS = 10.0


class Webhooks:
    """Posts a job's end to the address that was given with it, from the process that took the job in.

    Delivered at most once per try, three tries, and not at all if this process dies before: what must not be missed is
    asked for with GET /api/jobs/ID.
    """

    def __init__(self, config: GatewayConfig, resolve: Resolver | None = None) -> None:
        self._config = config
        self._resolve = resolve or _resolve
        self._secret = secret_bytes(config.webhook_secret) if config.webhook_secret else b""
        self._tasks = Tasks()

    async def check(self, url: object) -> None:
        """Look at an address before its job is taken in.

        Raises:
            Refused: 400, it may not be called.
        """
        if not self._config.webhooks:
            raise Refused(400, "webhook: not available here; ask with GET /api/jobs/ID", field="webhook")
        await self._address(url)

    def tell(self, url: str, running: Running) -> None:
        """Post to `url` when the job ends."""
        self._tasks.own(self._tell(url, running))

    async def stop(self) -> None:
        """Tell nobody any more."""
        await self._tasks.stop()

    async def deliver(self, url: str, event_id: str, told: Mapping[str, Any]) -> bool:
        """Post it now, with three tries; whether one came through.

        Args:
            event_id: of the job or batch, by which the receiver knows a second call of the same.
        """
        body = as_json(told)
        for number in range(1, _TRIES + 1):
            try:
                await self._post(await self._address(url), event_id, body)
                return True
            except (SollolError, httpx.HTTPError, OSError) as error:
                log.warning("webhook of %s, try %d: %s", event_id, number, type(error).__name__)
            if number < _TRIES:
                await asyncio.sleep(_PAUSE_SECONDS * number)
        return False

    async def _tell(self, url: str, running: Running) -> None:
        told = await outcome_of(running)
        await self.deliver(url, running.id, told)

    async def _post(self, address: Address, event_id: str, body: bytes) -> None:
        signed = signed_headers(self._secret, event_id, int(time.time()), body)
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=_TIMEOUT_SECONDS) as http,
            http.stream(
                "POST",
                address.url,
                content=body,
                headers={"Host": address.host, "Content-Type": "application/json", **signed},
                extensions={"sni_hostname": address.name},
            ) as answer,
        ):
            if answer.status_code >= 500:
                raise httpx.HTTPStatusError("it failed", request=answer.request, response=answer)

    async def _address(self, url: object) -> Address:
        return await resolved(url, self._resolve, self._config.webhook_hosts)


async def outcome_of(running: Running) -> dict[str, Any]:
    """How a job ended: {"id", "state", "answer"} or {"id", "state", "error"}; waits for it."""
    try:
        answer = await running.answer()
    except SollolError as error:
        return {"id": running.id, "state": running.state, "error": str(error)}
    return {
        "id": running.id,
        "state": running.state,
        "answer": {**answer, "_sollol_routing": answer.routing.as_dict()},
    }


async def _resolve(name: str, port: int) -> Sequence[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return [str(each[4][0]).partition("%")[0] for each in found]
