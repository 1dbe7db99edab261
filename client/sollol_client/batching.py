"""What both clients offer for batches."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from sollol_broker.batch_plan import BatchPlan
from sollol_broker.batch_record import BatchView, check_batch_id
from sollol_broker.batch_store import BatchStore, lost
from sollol_broker.errors import InvalidJob, NoNodeForModel
from sollol_broker.names import key_part
from sollol_broker.words import JobKind, Priority

from .batch import AsyncBatch, Batch
from .batch_input import BatchSource
from .request import RESULT_TTL_SECONDS, build_request, new_job_id
from .session import Session

T = TypeVar("T")

_MOST_ITEMS_A_CHUNK = 2048
_KINDS = (JobKind.EMBED, JobKind.CHAT, JobKind.GENERATE)
_ON_ERROR = ("collect", "stop")
# Arguments of `submit` that would otherwise be sent to the backend.
_NOT_HERE = frozenset(("stream", "deadline", "session", "idempotency_key", "trace", "hedge", "cache"))
_MIB = 1024 * 1024


async def start_batch(
    session: Session,
    *,
    model: str,
    app: str | None = None,
    embed: Any = None,
    chat: Any = None,
    generate: Any = None,
    priority: int = Priority.BATCH,
    chunk: int | str = "auto",
    on_error: str = "collect",
    metadata: Mapping[str, Any] | None = None,
    keep: bool | None = None,
    id: str | None = None,
    timeout: float | None = None,
    requires: Mapping[str, Any] | None = None,
    prefer: str | Sequence[str] | None = None,
    result_ttl: float = RESULT_TTL_SECONDS,
    wait_for_node: bool = False,
    chunk_seconds: float = 1.0,
    ahead_bytes: int = 32 * _MIB,
    max_result_bytes: int = 512 * _MIB,
    payload: Mapping[str, Any] | None = None,
    **backend: Any,
) -> AsyncBatch:
    """Begin a batch, or go on with it where the id is known; see `AsyncClient.batch`.

    Args:
        app: whose it is; None = the client's.
        payload: what the backend gets besides, whatever its names; ours are no arguments there.
    """
    for name in _NOT_HERE & backend.keys():
        raise InvalidJob(f"{name}: not for batches, leave it out", field=name)
    backend = {**backend, **(payload or {})}
    kind, given = _asked({JobKind.EMBED: embed, JobKind.CHAT: chat, JobKind.GENERATE: generate})
    source = given if isinstance(given, BatchSource) else BatchSource(kind, given)
    sample: dict[str, Any] = {kind.value: [] if kind is JobKind.EMBED else "."}
    request = build_request(
        app or session.app,
        "",
        **sample,
        model=model,
        priority=priority,
        timeout=timeout,
        requires=requires,
        metadata=metadata,
        prefer=prefer,
        result_ttl=result_ttl,
        backend=backend,
    )
    keeps = source.total is not None if keep is None else bool(keep)
    plan = BatchPlan(
        kind=kind,
        model=request.model,
        app=app or session.app,
        priority=request.submission.priority,
        payload=backend,
        timeout_seconds=timeout,
        needs=request.submission.needs,
        prefer=request.submission.prefer,
        chunk=_chunk(chunk),
        bound_ms=_number(chunk_seconds, "chunk_seconds") * 1000,
        on_error=_one_of(on_error, _ON_ERROR, "on_error"),
        keep=keeps,
        ttl_ms=request.submission.result_ttl_ms,
        out_bytes=int(_number(max_result_bytes if keeps else ahead_bytes, "max_result_bytes")),
        metadata=dict(metadata or {}),
    )
    batch_id = check_batch_id(id) if id is not None else new_job_id()
    store = BatchStore(session.broker)
    if not wait_for_node and await store.view(batch_id) is None:
        await _require_node(session, plan.model)
    await store.create(batch_id, plan)
    standing = await store.drive(batch_id, keeps_alive=True)
    batch = AsyncBatch(
        session, store, standing.view, source=source, ahead_bytes=int(_number(ahead_bytes, "ahead_bytes"))
    )
    batch.start()
    return batch


async def attach_batch(session: Session, batch_id: str) -> AsyncBatch:
    """A batch that another process began, or this one before a crash.

    Raises:
        JobLost: it is not known (any more).
    """
    store = BatchStore(session.broker)
    view = await store.view(check_batch_id(batch_id))
    if view is None:
        raise lost(batch_id)
    batch = AsyncBatch(session, store, view)
    batch.start()
    return batch


async def list_batches(session: Session, limit: int) -> list[BatchView]:
    """The latest batches, newest first."""
    return await BatchStore(session.broker).views(limit)


class AsyncBatching:
    """The batches of the async client."""

    session: Session

    async def batch(
        self,
        *,
        model: str,
        embed: Any = None,
        chat: Any = None,
        generate: Any = None,
        priority: int = Priority.BATCH,
        chunk: int | str = "auto",
        on_error: str = "collect",
        metadata: Mapping[str, Any] | None = None,
        keep: bool | None = None,
        id: str | None = None,
        **more: Any,
    ) -> AsyncBatch:
        """Run many items as one piece of work, of which this process may die.

        Args:
            embed, chat, generate: the items; exactly one of the three: a list, an iterator, an async iterator, an open
                text file, or a path: one item a line, or one JSON value a line where its name ends with .jsonl. An
                item is a text; for chat also a list of messages; or a dict with `input`, `messages` or `prompt` and
                options for this item alone.
            model: as for `submit`.
            priority: 0 to 10; Priority.BATCH by default: whoever waits at a prompt goes first.
            chunk: texts that one call to a backend embeds; "auto" = as many as take `chunk_seconds` at most, as
                measured. A chat or generate item is a call of its own.
            on_error: "collect" = items that fail carry their errors, the others are answered; "stop" = the first one
                that fails ends the batch.
            metadata: plain data that stays with the batch.
            keep: whether results stay once they are read, up to `max_result_bytes`, for `result_ttl` seconds after the
                end. False: they are dropped as they are read, and the work waits for the reader. None = True for
                lists.
            id: yours, of [A-Za-z0-9._-]. A batch with this id that exists goes on; of its items those that it has are
                passed over. None = a new one.
            timeout, requires, prefer: of each job, as for `submit`.
            result_ttl: seconds for which results can be fetched after the end.
            wait_for_node: begin even if no live node serves the model now.
            chunk_seconds: how long a call to a backend should take at most, and so how long somebody more urgent
                may have to wait for its slot.
            ahead_bytes: of items (and, without `keep`, of results) that Redis holds at once.
            max_result_bytes: of results that `keep` may hold; more ends the batch as FAILED.
            all else: what the backend takes, with Ollama's names, for all items: options, format, tools, …

        Raises:
            InvalidJob: names the argument at fault; nothing has been sent. What is wrong with an item is that item's
                error.
            NoNodeForModel: no live node serves the model.
            QueueFull: Redis has no room. BrokerUnavailable: there is no Redis.
        """
        await self.session.start()
        return await start_batch(
            self.session,
            model=model,
            embed=embed,
            chat=chat,
            generate=generate,
            priority=priority,
            chunk=chunk,
            on_error=on_error,
            metadata=metadata,
            keep=keep,
            id=id,
            **more,
        )

    async def attach_batch(self, batch_id: str) -> AsyncBatch:
        """A batch that another process began, or this one before a crash. It is driven from here, too.

        Raises:
            JobLost: it is not known (any more).
        """
        await self.session.start()
        return await attach_batch(self.session, batch_id)

    async def batches(self, limit: int = 50) -> list[BatchView]:
        """The latest batches, newest first."""
        return await list_batches(self.session, limit)


class Batching:
    """The batches of the sync client."""

    def batch(
        self,
        *,
        model: str,
        embed: Any = None,
        chat: Any = None,
        generate: Any = None,
        priority: int = Priority.BATCH,
        chunk: int | str = "auto",
        on_error: str = "collect",
        metadata: Mapping[str, Any] | None = None,
        keep: bool | None = None,
        id: str | None = None,
        **more: Any,
    ) -> Batch:
        """Run many items as one piece of work; see `AsyncClient.batch`. An iterator is read in a thread of its own."""
        asked = {"embed": embed, "chat": chat, "generate": generate, "priority": priority, "chunk": chunk}
        rest = {"on_error": on_error, "metadata": metadata, "keep": keep, "id": id, **more}
        return Batch(self._ask(lambda session: start_batch(session, model=model, **asked, **rest)), self)

    def attach_batch(self, batch_id: str) -> Batch:
        """A batch that another process began, or this one before a crash. It is driven from here, too.

        Raises:
            JobLost: it is not known (any more).
        """
        return Batch(self._ask(lambda session: attach_batch(session, batch_id)), self)

    def batches(self, limit: int = 50) -> list[BatchView]:
        """The latest batches, newest first."""
        return self._ask(lambda session: list_batches(session, limit))

    def run_there(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run something in the client's loop; for Batch."""
        return self._ask(lambda session: work())

    def _ask(self, question: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError


async def _require_node(session: Session, model: str) -> None:
    served = await session.registry.models()
    formable = session.broker.keys.formable(key_part(model))
    if (
        any(each.name == model for each in served)
        or await session.broker.link.call("HGET", formable, "ok") == b"1"
    ):
        return
    reasons = await session.registry.reasons(model)
    told = "; ".join(f"{node}: {why}" for node, why in sorted(reasons.items())) or "no worker is connected"
    raise NoNodeForModel(
        f"no node serves {model} ({told}); with wait_for_node=True (--wait-for-node) it begins all the same",
        reasons=reasons,
    )


def _asked(given: Mapping[JobKind, Any]) -> tuple[JobKind, Any]:
    asked = [(kind, value) for kind, value in given.items() if value is not None]
    if len(asked) != 1:
        told = " and ".join(kind.value for kind, _ in asked) or "none"
        raise InvalidJob(f"exactly one of embed, chat, generate is needed, got {told}", field="embed")
    return asked[0]


def _chunk(chunk: Any) -> int:
    if chunk == "auto":
        return 0
    if isinstance(chunk, bool) or not isinstance(chunk, int) or not 1 <= chunk <= _MOST_ITEMS_A_CHUNK:
        raise InvalidJob(
            f'chunk: "auto", or 1 to {_MOST_ITEMS_A_CHUNK}, is needed, got {chunk!r}', field="chunk"
        )
    return chunk


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e15:
        raise InvalidJob(f"{field}: a number above 0 is needed, got {value!r}", field=field)
    return float(value)


def _one_of(value: Any, words: Sequence[str], field: str) -> str:
    if value not in words:
        raise InvalidJob(f"{field}: one of {', '.join(words)} is needed, got {value!r}", field=field)
    return str(value)
