"""Tells addresses of the end of their jobs."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

import httpx

from sollol_broker.errors import SollolError

from ..tasks import Tasks
from .config import GatewayConfig
from .refusals import Refused
from .replies import as_json
from .running import Running
from .webhook_address import Address, Resolver, resolved

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

    async def _tell(self, url: str, running: Running) -> None:
        body = as_json(await outcome_of(running))
        for number in range(1, _TRIES + 1):
            try:
                await self._post(await self._address(url), body)
                return
            except (SollolError, httpx.HTTPError, OSError) as error:
                log.warning("webhook of job %s, try %d: %s", running.id, number, type(error).__name__)
            await asyncio.sleep(_PAUSE_SECONDS * number)

    async def _post(self, address: Address, body: bytes) -> None:
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=_TIMEOUT_SECONDS) as http,
            http.stream(
                "POST",
                address.url,
                content=body,
                headers={"Host": address.host, "Content-Type": "application/json"},
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
