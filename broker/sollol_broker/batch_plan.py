"""What all items of a batch share, and how a chunk of them becomes a job. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from . import features
from .batch_record import BatchView, Chunk
from .broker import Submission
from .codec import pack, unpack
from .envelope import MAX_BLOBS_BYTES, MAX_ENVELOPE_BYTES, Envelope, checked
from .errors import InvalidJob, SollolError, from_wire, to_wire
from .fair_order import head_start_ms
from .payload import take_blobs_out
from .words import JobKind

# An item with pictures is the largest.
_MAX_ITEM_BYTES = MAX_BLOBS_BYTES + MAX_ENVELOPE_BYTES
# The record of a chunk's job is of no use once the batch has its answer; this long `explain` can tell of it.
_JOB_TTL_MS = 30_000


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch asks of its model, beside the items.

    Attributes:
        payload: what each job carries, with Ollama's names, without messages, prompt or input.
        timeout_seconds: for one job. needs, prefer: as in `Submission`.
        chunk: items of a job; 0 = as many as keep within `bound_ms`.
        bound_ms: how long one call to a backend should take at most.
        on_error: "collect" or "stop". keep: whether results stay after they are read.
        ttl_ms: for which the batch stays after its end. spool_bytes: of items ahead of their answers.
        out_bytes: of results: with `keep` the most there may be, else how far ahead of their reader they get.
        metadata: the caller's own.
    """

    kind: JobKind
    model: str
    app: str
    priority: int = 1
    payload: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    needs: bytes = b""
    prefer: tuple[str, ...] = ()
    chunk: int = 0
    bound_ms: float = 1000.0
    on_error: str = "collect"
    keep: bool = True
    ttl_ms: int = 3_600_000
    spool_bytes: int = 32 * 1024 * 1024
    out_bytes: int = 512 * 1024 * 1024
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it."""
        return pack(
            {
                **asdict(self),
                "kind": self.kind.value,
                "prefer": list(self.prefer),
                "payload": dict(self.payload),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> BatchPlan:
        """What `to_bytes` wrote.

        Raises:
            InvalidJob: it is malformed, or of another release.
        """
        plain = unpack(data, max_bytes=_MAX_ITEM_BYTES)
        try:
            return cls(**{**plain, "kind": JobKind(plain["kind"]), "prefer": tuple(plain["prefer"])})
        except (KeyError, TypeError, ValueError):
            raise InvalidJob(
                "the batch was made by another release: start it anew under another id"
            ) from None

    def digest(self) -> str:
        """The same for plans that give the same answers."""
        asked = [self.kind.value, self.model, json.dumps(self.payload, sort_keys=True, default=str)]
        return hashlib.sha256(pack(asked)).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Refused:
    """Stands for an item that cannot be sent: it fails with this error."""

    error: SollolError


# A text to embed, or what one chat or generate job carries: messages or prompt, and what differs from the plan.
Item = str | Mapping[str, Any] | Refused


def pack_item(item: Item) -> bytes:
    """An item as it waits in Redis; what cannot be sent is packed as its error."""
    if isinstance(item, Refused):
        return pack([to_wire(item.error)])
    try:
        return pack(item if isinstance(item, str) else dict(item))
    except (InvalidJob, UnicodeError) as error:
        told = error if isinstance(error, InvalidJob) else InvalidJob("the text is no valid Unicode")
        return pack([to_wire(told)])


def unpack_item(data: bytes) -> Item:
    """What `pack_item` wrote; what cannot be read is refused."""
    try:
        item = unpack(data, max_bytes=_MAX_ITEM_BYTES)
    except InvalidJob as error:
        return Refused(error)
    if isinstance(item, list):
        return Refused(from_wire(item[0]))
    return item if isinstance(item, str | dict) else Refused(InvalidJob("the item is neither text nor a map"))


def size_of(item: Item) -> tuple[int, int]:
    """Characters and bytes, about."""
    if isinstance(item, str):
        return len(item), len(item)
    return (0, 0) if isinstance(item, Refused) else (features.prompt_characters(item), 0)


def chunk_submission(plan: BatchPlan, view: BatchView, chunk: Chunk, items: Sequence[Item]) -> Submission:
    """A chunk as a job. Its answer goes to the batch, so nobody else is told of it.

    Raises:
        InvalidJob: it is too large, or holds what no job can.
    """
    payload = dict(plan.payload)
    if plan.kind is JobKind.EMBED:
        payload["input"] = list(items)
    else:
        (item,) = items
        assert isinstance(item, Mapping)  # noqa: S101  # the feeder makes them so
        options = {**dict(payload.get("options") or {}), **dict(item.get("options") or {})}
        payload.update({**item, "options": options} if options else item)
    payload, blobs = take_blobs_out(payload)
    fields: dict[str, Any] = {
        "kind": plan.kind.value,
        "model": plan.model,
        "app": plan.app,
        "priority": plan.priority,
        "payload": payload,
        "timeout_seconds": plan.timeout_seconds,
        "metadata": {"batch": view.id, "bound_ms": plan.bound_ms},
    }
    embeds = plan.kind is JobKind.EMBED
    return Submission(
        job_id=view.job_id(chunk),
        model=plan.model,
        app=plan.app,
        priority=plan.priority,
        head_start_ms=head_start_ms(plan.priority),
        stream=False,
        envelope=checked(Envelope, fields).to_bytes(),
        inbox="",
        result_ttl_ms=_JOB_TTL_MS,
        prompt_chars=features.prompt_characters(payload),
        extra_tokens=features.picture_tokens(blobs),
        output_cap=0 if embeds else features.output_cap(payload.get("options")),
        context_tokens=features.context_needed(payload),
        task=features.task_type(plan.kind, payload),
        affinity="" if embeds else features.affinity(plan.app, None, payload),
        needs=plan.needs,
        # The night is long: nodes go and come back.
        without_node=True,
        prefer=plan.prefer,
        blobs=blobs,
    )
