"""The page for tests: the real server on a free port of this machine, and a browser's worth of HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from sollol_coordinator.page.config import PageConfig
from sollol_coordinator.page.server import Page

_TOKEN = re.compile(r'name="(?:csrf-token" content|token" value)="([0-9a-f]{64})"')


@dataclass(slots=True)
class Site:
    """A page that runs, and a browser that keeps its cookies."""

    page: Page
    http: httpx.AsyncClient

    async def token(self, path: str = "/") -> str:
        """What the forms of a page carry."""
        found = _TOKEN.search((await self.http.get(path)).text)
        assert found is not None
        return found[1]

    async def look(self, which: str, **params: str) -> dict[str, Any]:
        """A look, once."""
        answer = await self.http.get(f"/api/{which}", params=params)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def do(self, verb: str, *, token: str | None = None, **given: str) -> httpx.Response:
        """An action, as the page's own scripts ask for it."""
        headers = {"X-CSRF-Token": token if token is not None else await self.token()}
        return await self.http.post(f"/do/{verb}", data=given, headers=headers)

    async def events(self, which: str, **params: str) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """The stream of a look: ("look" or "trouble", what it says)."""
        async with self.http.stream("GET", f"/live/{which}", params=params) as answer:
            assert answer.status_code == 200
            kind = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield kind, json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def site(redis_url: str, **config: Any) -> AsyncIterator[Site]:
    """A page of a fabric; at the end all of its streams have ended, too."""
    page = Page(redis_url, PageConfig(**{"port": 0, **config}), environ={}, patience_seconds=1.0)
    await asyncio.to_thread(page.start)
    try:
        async with httpx.AsyncClient(base_url=page.url, trust_env=False, timeout=30) as http:
            yield Site(page, http)
    finally:
        await asyncio.to_thread(page.stop)
