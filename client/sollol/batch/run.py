"""Runs a batch from a file into a file, and goes on with one that was broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sollol_broker.batch_record import BatchProgress
from sollol_broker.batch_store import BatchStore
from sollol_broker.errors import InvalidJob, JobCancelled, JobFailed, SollolError, to_wire
from sollol_client import AsyncBatch, AsyncClient, BatchItem

from .items import Item, Source
from .outputs import Output, Row, errors_of, open_output, part_of
from .state import Asked, State, check_same, locked, new_state, read_state, state_of, write_state

# A batch that is left for the night is found again in the morning.
_RESULT_TTL_SECONDS = 24 * 3600.0
_CHUNKS = 64
_ANSWER_FIELDS = ("model", "done_reason", "prompt_eval_count", "eval_count")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done.

    Attributes:
        settings: arguments of `client.batch` that change the answers. more: those that do not.
        fresh: throw away what an earlier run has left.
    """

    source: Source
    output: Path
    model: str
    settings: Mapping[str, Any]
    more: Mapping[str, Any]
    fresh: bool = False

    @property
    def asked(self) -> Asked:
        """What an unfinished file must be about, to be gone on with."""
        source = self.source
        settings = {**self.settings, "field": source.field}
        return Asked(source.kind.value, self.model, source.digest, source.count, settings)


@dataclass(frozen=True, slots=True)
class Done:
    """How it ended.

    Attributes:
        before: items that an earlier run had written. failed: of those of this run.
    """

    batch: str
    items: int
    before: int
    failed: int
    files: Sequence[Path]


async def run(
    client: AsyncClient,
    wanted: Wanted,
    *,
    on_start: Callable[[str, int], None],
    on_progress: Callable[[int, BatchProgress], None],
) -> Done:
    """Run it to its end.

    Args:
        on_start: is told the batch's id, and how many items an earlier run has written.
        on_progress: is told how many items are written, and how the batch stands.

    Raises:
        InvalidJob: the file that is there belongs to something else.
        JobFailed: the batch was ended by somebody; what has been written stays, for the next run.
    """
    path = wanted.output
    with locked(path):
        if wanted.fresh:
            _forget(path)
        found = read_state(path)
        if found is not None:
            check_same(path, found, wanted.asked)
        else:
            _forget(path)  # of nobody knows what
        output = open_output(path, wanted.source)
        try:
            done = await _written(client, wanted, found, output, on_start, on_progress)
        except BaseException as error:
            is_empty = not output.rows
            output.close()
            if isinstance(error, InvalidJob | JobFailed) and is_empty:
                _forget(path)  # nothing to go on with: the command that corrects it need not be --fresh
            raise
        state_of(path).unlink()
        return done


async def _written(
    client: AsyncClient,
    wanted: Wanted,
    found: State | None,
    output: Output,
    on_start: Callable[[str, int], None],
    on_progress: Callable[[int, BatchProgress], None],
) -> Done:
    before, failed, total = output.rows, 0, wanted.source.count
    first_error: SollolError | None = None
    if before == total and found is not None:
        return Done(found.batch, total, before, 0, output.finish())
    state = await _state(client, wanted, found, before)
    batch = await _batch(client, wanted, state)
    on_start(batch.id, before)
    names = wanted.source.items(before)
    async for page in batch.pages(before - state.start):
        rows = [
            _row(item, name, state.start) for item, name in zip(page, islice(names, len(page)), strict=True)
        ]
        if (end := _never_run(page, batch)) is not None:
            await asyncio.to_thread(output.add, rows[:end])
            break
        # Behind this page its results are dropped in Redis: they have to be on the disk.
        await asyncio.to_thread(output.add, rows)
        failed += sum(row.error is not None for row in rows)
        first_error = first_error or next((item.error for item in page if item.error is not None), None)
        on_progress(output.rows, batch.progress)
    if first_error is not None and not output.rows:  # not one vector, so nobody knows how long they are
        raise JobFailed(
            f"batch {batch.id}: each of its {total:,} items failed, the first because: {first_error}"
        )
    if output.rows < total:
        why = f" ({batch.error})" if batch.error else ""
        raise JobFailed(
            f"batch {batch.id} is {batch.state.value}{why}: {output.rows:,} of {total:,} items are written; the same "
            "command goes on with the rest"
        )
    return Done(batch.id, total, before, failed, output.finish())


async def _state(client: AsyncClient, wanted: Wanted, found: State | None, rows: int) -> State:
    """The batch to go on with: that of an earlier run while the fabric has it, else a new one for the rest."""
    if found is not None:
        store = BatchStore(client.session.broker)
        view = await store.view(found.batch)
        if view is not None and view.state.value not in ("cancelled", "failed"):
            await _drop_written(store, found, rows)
            return found
    state = new_state(wanted.asked, rows)
    write_state(wanted.output, state)
    return state


async def _drop_written(store: BatchStore, state: State, rows: int) -> None:
    """Drop results that were written and not yet dropped, or the batch would wait for a reader of them."""
    while ended := await store.ended_from(state.batch, 0, _CHUNKS):
        written = [each for each in ended if each.chunk.end <= rows - state.start]
        await store.shed(state.batch, written)
        if len(written) < len(ended):
            return


async def _batch(client: AsyncClient, wanted: Wanted, state: State) -> AsyncBatch:
    items = (item.value for item in wanted.source.items(state.start))
    asked: dict[str, Any] = {wanted.source.kind.value: items, **wanted.settings, **wanted.more}
    return await client.batch(
        model=wanted.model,
        id=state.batch,
        keep=False,
        result_ttl=_RESULT_TTL_SECONDS,
        metadata={"input": wanted.source.path.name, "output": wanted.output.name},
        **asked,
    )


def _row(item: BatchItem, name: Item, start: int) -> Row:
    index = start + item.index
    if item.error is not None:
        return Row(index, name.id, error=to_wire(item.error))
    if item.answer is None:
        return Row(index, name.id, item.vector_bytes)
    answer = item.answer
    told: dict[str, Any] = {"text": answer.text}
    told |= {"thinking": answer.thinking} if answer.thinking else {}
    told |= {"tool_calls": answer.tool_calls} if answer.tool_calls else {}
    return Row(
        index, name.id, fields={**told, **{name: answer[name] for name in _ANSWER_FIELDS if name in answer}}
    )


def _never_run(page: Sequence[BatchItem], batch: AsyncBatch) -> int | None:
    """Where the items begin that the batch has not come to; None = there are none."""
    if batch.state.value not in ("cancelled", "failed"):
        return None
    return next((n for n, item in enumerate(page) if isinstance(item.error, JobCancelled)), None)


def _forget(path: Path) -> None:
    """Throw away what an earlier run has left beside an output."""
    for each in (state_of(path), part_of(path), part_of(errors_of(path))):
        each.unlink(missing_ok=True)
