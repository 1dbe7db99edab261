"""Carries an OpenAI batch out: checks its lines, feeds them to the fabric, and writes its output and error files.

Each step can be done again, by another gateway: what counts lies in Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from sollol_broker.batch_plan import Item
from sollol_broker.batch_record import BatchView
from sollol_broker.batch_store import BatchStore
from sollol_broker.errand_store import Errand, ErrandStore
from sollol_broker.errors import InvalidJob, JobCancelled, JobLost
from sollol_broker.file_store import FileStore, StoredFile, Upload
from sollol_broker.words import BatchState, JobKind

from ..aio import AsyncClient
from ..batch import AsyncBatch
from ..batch_input import BatchSource
from ..batch_item import BatchItem
from ..batching import start_batch
from .openai_batch_lines import ENDPOINTS, MOST_LINES, Faults, Line, LineFault, Reader, told_line
from .openai_batch_record import OpenAIBatch

# Of those that are told of one input.
_MOST_FAULTS = 100
# Lines are read between two turns for others.
_LINES_AT_ONCE = 64
# Of those that are fed.
_ITEMS_AT_ONCE = 256
# Between two looks whether somebody wants it to end.
_LOOK_SECONDS = 1.0
# For which its results stay in the fabric if no gateway is there to write them into files.
_RESULT_TTL_SECONDS = 24 * 3600.0
# One that something unforeseen keeps from its end is not tried for ever.
_PATIENCE_SECONDS = 24 * 3600.0
_MOST_RESULT_BYTES = 2 * 1024 * 1024 * 1024
_CHUNKS = 64


class OpenAIBatchRun:
    """Carries batches out.

    Args:
        files: takes output files even where an application has no room left for input.
    """

    def __init__(self, client: AsyncClient, errands: ErrandStore, files: FileStore) -> None:
        self._client = client
        self._errands = errands
        self._files = files

    async def __call__(self, errand: Errand) -> None:
        """From wherever it is to its end."""
        record = OpenAIBatch.from_dict(errand.record)
        try:
            if await self._now() > record.expires + _PATIENCE_SECONDS:
                raise LineFault(
                    "batch_failed", "it could not be carried out within its window and another day"
                )
            if record.status == "validating":
                record = await self._checked(record)
                await self._errands.update(record.id, record.as_dict())
            batch = await self._started(record)
            ended = await self._ended(record, batch)
            await self._finish(record, batch, ended)
        except LineFault as fault:
            await self._fail(record, fault)
        except InvalidJob as error:
            await self._fail(record, LineFault("invalid_request", str(error), param="body"))
        except JobLost:
            await self._fail(record, LineFault("batch_lost", "Redis has lost the batch: send it again"))

    async def _checked(self, record: OpenAIBatch) -> OpenAIBatch:
        """It with all lines counted.

        Raises:
            LineFault: some make no sense; it tells of all of them.
        """
        reader, faults, lines, items = Reader(record.endpoint, record.model), list[LineFault](), 0, 0
        async with aclosing(self._texts(record)) as texts:
            async for text in texts:
                try:
                    line = reader.read(text)
                except LineFault as fault:
                    faults.append(fault)
                    if len(faults) >= _MOST_FAULTS:
                        break
                    continue
                if line is not None:
                    lines, items = lines + 1, items + line.size
                    if lines > MOST_LINES:
                        raise LineFault("too_many_requests", f"a batch has at most {MOST_LINES:,} requests")
        if faults:
            raise Faults(faults)
        if not lines:
            raise LineFault("empty_file", "the input file has no requests")
        now = await self._now()
        checked = replace(record, lines=lines, items=items, shared=reader.shared or {})
        return checked.came_to("in_progress", now)

    async def _started(self, record: OpenAIBatch) -> AsyncBatch:
        kind = ENDPOINTS[record.endpoint]
        asked: dict[str, Any] = {kind.value: LineSource(kind, lambda: self._lines(record))}
        return await start_batch(
            self._client.session,
            app=record.app,
            model=record.model,
            **asked,
            id=record.id,
            priority=record.priority,
            keep=True,
            result_ttl=_RESULT_TTL_SECONDS,
            max_result_bytes=_MOST_RESULT_BYTES,
            wait_for_node=True,
            metadata={"endpoint": record.endpoint, **(record.metadata or {})},
            payload=record.shared,
        )

    async def _ended(self, record: OpenAIBatch, batch: AsyncBatch) -> str:
        """How it ended: completed, failed, cancelled or expired; waits for that."""
        while not batch.state.is_terminal:
            errand = await self._errands.find(record.id)
            if errand is None or errand.is_cancelled or await self._now() >= record.expires:
                await batch.cancel()
                continue
            with suppress(TimeoutError):
                await batch.wait(_LOOK_SECONDS)
        if batch.state is BatchState.CANCELLED:
            errand = await self._errands.find(record.id)
            is_late = await self._now() >= record.expires and not (errand is not None and errand.is_cancelled)
            return "expired" if is_late else "cancelled"
        view = batch.view
        return "failed" if batch.state is BatchState.FAILED and view.done < record.items else "completed"

    async def _finish(self, record: OpenAIBatch, batch: AsyncBatch, ended: str) -> None:
        """Write its files, and let it have ended."""
        record = record.came_to("finalizing", await self._now())
        await self._errands.update(record.id, record.as_dict())
        output, errors = await self._files.begin(record.app), await self._files.begin(record.app)
        try:
            completed, failed = await self._written(record, batch, ended, output, errors)
            kept = [
                await self._closed(record, upload, name)
                for upload, name in ((output, "output"), (errors, "error"))
            ]
        except BaseException:
            for upload in (output, errors):
                await asyncio.shield(self._files.drop(upload.record))
            raise
        faults = (LineFault("batch_failed", batch.error).as_dict(),) if ended == "failed" else ()
        told = record.came_to(
            ended,
            await self._now(),
            completed=completed,
            failed=failed,
            errors=faults,
            output_file_id=kept[0].id if kept[0] else None,
            error_file_id=kept[1].id if kept[1] else None,
        )
        if await self._errands.end(record.id, told.as_dict()):
            await self._forget_results(batch.view)
        else:  # another gateway was quicker, and its files are told of
            for file in kept:
                if file is not None:
                    await self._files.drop(file)

    async def _written(
        self, record: OpenAIBatch, batch: AsyncBatch, ended: str, output: Upload, errors: Upload
    ) -> tuple[int, int]:
        """How many lines have an answer, and how many an error."""
        counts = {False: 0, True: 0}
        items = batch.results()
        async with aclosing(self._lines(record)) as lines:
            async for line in lines:
                found = [await anext(items, None) for _ in range(line.size)]
                told = [item if item is not None else _NEVER_RUN for item in found]
                text, is_error = told_line(line, told, record.id, ended)
                counts[is_error] += 1
                await (errors if is_error else output).write(text)
        return counts[False], counts[True]

    async def _closed(self, record: OpenAIBatch, upload: Upload, name: str) -> StoredFile | None:
        """The file; None = nothing was written to it."""
        if not upload.size:
            return None
        return await upload.close(f"{record.id}_{name}.jsonl", record.output_ttl, {"purpose": "batch_output"})

    async def _forget_results(self, view: BatchView) -> None:
        """They lie in files now."""
        store = BatchStore(self._client.session.broker)
        while ended := await store.ended_from(view.id, 0, _CHUNKS):
            await store.shed(view.id, ended)

    async def _fail(self, record: OpenAIBatch, fault: LineFault) -> None:
        told = tuple(each.as_dict() for each in fault.all())
        failed = record.came_to("failed", await self._now(), errors=told)
        await self._errands.end(record.id, failed.as_dict())
        await BatchStore(self._client.session.broker).halt(
            record.id, BatchState.FAILED, "its input cannot be read"
        )

    async def _lines(self, record: OpenAIBatch) -> AsyncGenerator[Line, None]:
        reader = Reader(record.endpoint, record.model, checks_ids=False)
        async with aclosing(self._texts(record)) as texts:
            async for text in texts:
                if (line := reader.read(text)) is not None:
                    yield line

    async def _texts(self, record: OpenAIBatch) -> AsyncGenerator[bytes, None]:
        file = await self._files.find(record.input_file_id, record.app)
        if file is None:
            raise LineFault(
                "input_file_gone", "the input file has run out, or was deleted", param="input_file_id"
            )
        number = 0
        async with aclosing(self._files.lines(file)) as lines:
            async for text in lines:
                yield text
                number += 1
                if number % _LINES_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _now(self) -> float:
        return await self._errands.now_ms() / 1000


class LineSource(BatchSource):
    """The items of an input file, many at a time; what is wrong with a line has been found before.

    Args:
        lines: reads the file from its beginning.
    """

    def __init__(self, kind: JobKind, lines: Callable[[], AsyncGenerator[Line, None]]) -> None:
        super().__init__(kind, ())
        self.total = None
        self._lines = lines

    async def blocks(self, skip: int = 0) -> AsyncGenerator[list[Item], None]:
        """See BatchSource."""
        index, block = 0, list[Item]()
        async with aclosing(self._lines()) as lines:
            async for line in lines:
                for given in line.items():
                    if index >= skip:
                        block.append(self._item(given, index))
                    index += 1
                if len(block) >= _ITEMS_AT_ONCE:
                    yield block
                    block = []
        if block:
            yield block


_NEVER_RUN = BatchItem(-1, error=JobCancelled("the batch ended before this request was answered"))
