"""All of the gateway that has to do with batches, put together: its paths, and the loop that sees to their errands."""

from __future__ import annotations

from starlette.routing import Route

from sollol_broker.errand_store import ErrandStore
from sollol_broker.file_store import FileStore

from .batch_run import BatchRun
from .batches import PLAIN, Batches
from .errands import Errands
from .openai_batch_record import KIND as OPENAI
from .openai_batch_run import OpenAIBatchRun
from .openai_batches import OpenAIBatches
from .openai_files import OpenAIFiles
from .serving import Serving
from .webhooks import Webhooks


class BatchDesk:
    """Batches over HTTP."""

    def __init__(self, serving: Serving, webhooks: Webhooks) -> None:
        broker, most_bytes = serving.client.session.broker, serving.config.most_app_bytes
        store = ErrandStore(broker)
        # Answers get room even where input has taken all.
        run = OpenAIBatchRun(serving.client, store, FileStore(broker, most_bytes=2 * most_bytes))
        plain = BatchRun(serving.client, store, webhooks)
        self._errands = Errands(store, {OPENAI: run, PLAIN: plain})
        self._plain = Batches(serving, webhooks, store, self._errands)
        self._files = OpenAIFiles(serving, FileStore(broker, most_bytes=most_bytes))
        self._batches = OpenAIBatches(serving, self._files, store, self._errands)

    def routes(self) -> list[Route]:
        """Its paths."""
        return [*self._plain.routes(), *self._files.routes(), *self._batches.routes()]

    def start(self) -> None:
        """See to errands from now on."""
        self._errands.start()

    async def stop(self) -> None:
        """Leave them to other gateways."""
        await self._errands.stop()
