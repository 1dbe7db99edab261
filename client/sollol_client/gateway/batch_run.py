"""Sees a batch that came over HTTP to its end: any gateway drives it, and tells its webhook."""

from __future__ import annotations

from typing import Any

from sollol_broker.errand_store import Errand, ErrandStore
from sollol_broker.errors import JobLost

from ..aio import AsyncClient
from ..batching import attach_batch
from .batches import status_of
from .webhooks import Webhooks


class BatchRun:
    """Carries batches out. The webhook is called at least once: a gateway may die when it has just called."""

    def __init__(self, client: AsyncClient, store: ErrandStore, webhooks: Webhooks) -> None:
        self._client = client
        self._store = store
        self._webhooks = webhooks

    async def __call__(self, errand: Errand) -> None:
        """Drive it while nobody else does, wait for its end, and tell of it."""
        told: dict[str, Any]
        try:
            batch = await attach_batch(self._client.session, errand.id)
            try:
                await batch.wait()
            finally:
                await batch.leave()
            told = status_of(batch.view)
        except JobLost:
            told = {"job_id": errand.id, "status": "lost"}
        if (url := errand.record.get("url")) is not None:
            await self._webhooks.deliver(str(url), errand.id, told)
        await self._store.end(errand.id, errand.record)
