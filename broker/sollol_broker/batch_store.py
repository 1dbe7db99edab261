"""The batches in Redis: their verbs as typed methods, sealed and opened here."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .batch_plan import BatchPlan, Item, unpack_item
from .batch_record import BatchView, Chunk, EndedChunk, view_of
from .batch_rules import SizeSeen, Speed
from .broker import Broker
from .codec import pack
from .errors import InvalidJob, JobLost, QueueFull, SollolError
from .names import key_part
from .outcome import pack_error
from .told import text
from .words import BatchState

# A function may take so many arguments, and Redis should not be held up for longer.
MOST_FED = 512
_FULL_SECONDS = 5.0
# A field of a model's learned figures.
_SIZE = re.compile(r"z(\d+)")


@dataclass(frozen=True, slots=True)
class Standing:
    """How a batch stands.

    Attributes:
        drives: the caller moves it on. open: chunks that are jobs now. failed: chunks to be cut.
        ms_per_char: what its chunks took lately; 0 = none has ended.
    """

    view: BatchView
    drives: bool
    open: tuple[Chunk, ...]
    failed: tuple[Chunk, ...]
    ms_per_char: float = 0.0


@dataclass(frozen=True, slots=True)
class Fed:
    """What came of feeding: how many items the batch has, and whether it takes more."""

    fed: int
    takes_more: bool


@dataclass(frozen=True, slots=True)
class ModelSpeed:
    """What is known of a model.

    Attributes:
        speeds: of its workers. has_run: at all.
        sizes: what chunks of about one size took lately, by powers of two of their characters.
    """

    speeds: tuple[Speed, ...]
    chars_per_token: float
    has_run: bool
    sizes: Mapping[int, SizeSeen]


class BatchStore:
    """Everything that is asked of Redis for batches."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._keys = broker.keys
        self._plans: dict[str, Mapping[str, Any]] = {}

    async def create(self, batch_id: str, plan: BatchPlan) -> bool:
        """Take a batch in; False: it exists, with the same plan. Safe to repeat.

        Raises:
            InvalidJob: it exists and asks something else.
            QueueFull: Redis has no room.
        """
        tag, seal = secrets.token_hex(6), self.broker.seal
        digest = seal.blind(plan.digest())
        fields = {
            "kind": plan.kind.value,
            "model": plan.model,
            "app": plan.app,
            "priority": str(plan.priority),
            "on_error": plan.on_error,
            "keep": "1" if plan.keep else "0",
            "ttl": str(plan.ttl_ms),
            "tag": tag,
            "digest": digest,
        }
        template = seal.close(plan.to_bytes(), f"{batch_id}~{tag}", "plan")
        reply = await self._sure("batch", batch_id, pack(fields), template)
        if reply[0] == b"full":
            raise QueueFull("Redis has no room for a batch now", retry_after=_FULL_SECONDS)
        if reply[0] == b"known" and reply[1].decode() != digest:
            raise InvalidJob(
                f"id: batch {batch_id} exists and asks another model or other options: take another id",
                field="id",
            )
        return bool(reply[0] == b"new")

    async def feed(self, view: BatchView, first: int, packed: Sequence[bytes], *, last: bool) -> Fed:
        """Give it its next items (`pack_item`), at most MOST_FED; those it has are passed over. Safe to repeat.

        Raises:
            QueueFull: Redis has no room now.
            JobLost: it is not known.
        """
        seal, under = self.broker.seal, view.seal_id
        sealed = [seal.close(data, under, f"item:{index}") for index, data in enumerate(packed, first)]
        word, fed = await self._sure("feed", view.id, first, int(last), *sealed)
        if word == b"unknown":
            raise lost(view.id)
        if word == b"full":
            raise QueueFull("Redis has no room for more items of the batch", retry_after=_FULL_SECONDS)
        return Fed(int(fed), word != b"over")

    async def drive(
        self, batch_id: str, who: str = "", *, lease_ms: int = 0, due_ms: int = 0, keeps_alive: bool = False
    ) -> Standing:
        """How it stands; with a name and a lease, drive it if nobody else does. A lease of 0 leaves it.

        Args:
            due_ms: when it is left: after so long somebody else should look after it.
            keeps_alive: it has not been forgotten: its TTL begins anew. Otherwise only while it has jobs.

        Raises:
            JobLost: it is not known.
        """
        reply = await self.broker.link.call(
            *self.broker.command("drive", batch_id, who, lease_ms, due_ms, int(keeps_alive))
        )
        if reply[0] == -1:
            raise lost(batch_id)
        raw = dict(zip(reply[1][::2], reply[1][1::2], strict=True))
        open_: list[Chunk] = []
        failed: list[Chunk] = []
        for start, count in zip(reply[2][::2], reply[2][1::2], strict=True):
            chunk = Chunk(int(start), int(count.rstrip(b"!")))
            (failed if count.endswith(b"!") else open_).append(chunk)
        chars = float(raw.get(b"seen_chars", b"0"))
        return Standing(
            self._view(batch_id, raw),
            reply[0] == 1,
            tuple(sorted(open_)),
            tuple(sorted(failed)),
            float(raw.get(b"seen_ms", b"0")) / chars if chars > 0 else 0.0,
        )

    async def cut(self, batch_id: str, chunks: Sequence[Chunk]) -> int:
        """Open chunks: of the next items, or the first part of one that failed. Safe to repeat."""
        flat = [part for chunk in chunks for part in (chunk.start, chunk.count)]
        return int(await self._sure("cut", batch_id, *flat))

    async def spoil(self, view: BatchView, start: int, error: SollolError) -> bool:
        """End an item that cannot become a job."""
        data = self.broker.seal.close(pack_error(error), view.job_id(Chunk(start, 1)), "end")
        return bool(await self._sure("spoil", view.id, start, data) == 1)

    async def halt(self, batch_id: str, state: BatchState, why: str = "") -> BatchState | None:
        """End it before its time; gives the state in which it is now, None = it is not known. Safe to repeat."""
        word = (await self._sure("halt", batch_id, state.value, why)).decode()
        return None if word == "unknown" else BatchState(word)

    async def shed(self, batch_id: str, ended: Sequence[EndedChunk]) -> None:
        """Drop results that have been read."""
        await self._call("shed", batch_id, *(bytes(each) for each in ended))

    async def plan(self, batch_id: str) -> BatchPlan:
        """What it asks.

        Raises:
            JobLost: it is not known. KeyMissing, InvalidJob: it cannot be read here.
        """
        template, tag = await self.broker.link.call("HMGET", self._keys.batch(batch_id), "template", "tag")
        if template is None or tag is None:
            raise lost(batch_id)
        opened = self.broker.seal.open(
            bytes(template), f"{batch_id}~{tag.decode()}", "plan", must=self.broker.seal.is_on
        )
        return BatchPlan.from_bytes(opened)

    async def items(self, view: BatchView, chunk: Chunk) -> list[Item] | None:
        """The items of a chunk; None: they are not all there (any more)."""
        indexes = range(chunk.start, chunk.end)
        rows = await self.broker.link.call("HMGET", self._keys.batch_in(view.id), *indexes)
        if any(row is None for row in rows):
            return None
        seal, under = self.broker.seal, view.seal_id
        return [
            unpack_item(seal.open(bytes(row), under, f"item:{index}", must=seal.is_on))
            for index, row in zip(indexes, rows, strict=True)
        ]

    async def view(self, batch_id: str) -> BatchView | None:
        """Its record; None = it is not known."""
        flat = await self.broker.link.call("HGETALL", self._keys.batch(batch_id))
        raw = dict(zip(flat[::2], flat[1::2], strict=True))
        return self._view(batch_id, raw) if b"state" in raw else None

    async def views(self, limit: int) -> list[BatchView]:
        """The latest batches, newest first; damaged records are left out."""
        names = await self.broker.link.call("ZRANGE", self._keys.batches, 0, max(0, limit - 1), "REV")
        found = await asyncio.gather(*(self._readable(text(name)) for name in names)) if limit > 0 else []
        return [view for view in found if view is not None]

    async def _readable(self, batch_id: str) -> BatchView | None:
        try:
            return await self.view(batch_id)
        except (KeyError, ValueError):
            return None

    async def due(self, limit: int) -> list[str]:
        """Unfinished batches that nobody drives."""
        seconds, micros = await self.broker.link.call("TIME")
        now, key = int(seconds) * 1000 + int(micros) / 1000, self._keys.batch_due
        rows = await self.broker.link.call("ZRANGEBYSCORE", key, "-inf", f"{now:.3f}", "LIMIT", 0, limit)
        return [row.decode() for row in rows]

    async def ended_after(self, batch_id: str, entry_id: str, limit: int) -> list[tuple[str, EndedChunk]]:
        """Chunks in the order in which they ended, behind an entry; "" = from the first."""
        start = f"({entry_id}" if entry_id else "-"
        rows = await self.broker.link.call(
            "XRANGE", self._keys.batch_done(batch_id), start, "+", "COUNT", limit
        )
        return [(entry.decode(), EndedChunk.parse(flat[1])) for entry, flat in rows]

    async def ended_from(self, batch_id: str, index: int, limit: int) -> list[EndedChunk]:
        """Ended chunks in the order of their items: the one with this item, if it has ended, and those behind it."""
        key = self._keys.batch_map(batch_id)
        before = await self.broker.link.call("ZRANGE", key, index, "-inf", "BYSCORE", "REV", "LIMIT", 0, 1)
        rows = await self.broker.link.call("ZRANGE", key, f"({index}", "+inf", "BYSCORE", "LIMIT", 0, limit)
        found = [EndedChunk.parse(row) for row in (*before, *rows)]
        return [each for each in found if each.chunk.end > index]

    async def results(self, view: BatchView, ended: Sequence[EndedChunk]) -> list[bytes | None]:
        """What chunks gave: terminal entries as `read_outcome` takes them; None = it is no longer there."""
        if not ended:
            return []
        starts = [each.chunk.start for each in ended]
        rows = await self.broker.link.call("HMGET", self._keys.batch_out(view.id), *starts)
        seal = self.broker.seal
        return [
            row
            if row is None or not row
            else seal.open(
                bytes(row), view.job_id(each.chunk), "end", must=seal.is_on and each.state == "done"
            )
            for row, each in zip(rows, ended, strict=True)
        ]

    async def speed(self, model: str) -> ModelSpeed:
        """What is known of a model's workers."""
        key = key_part(model)
        flat = await self.broker.link.call("HGETALL", self._keys.shares(key))
        rows = await self.broker.link.call("HGETALL", self._keys.learned(key))
        learned = {name.decode(): value.decode() for name, value in zip(rows[::2], rows[1::2], strict=True)}
        shares = [row.decode().split("|") for row in flat[1::2]]
        return ModelSpeed(
            tuple(Speed(int(share[1]), int(share[3]) / 1000) for share in shares),
            max(0.5, float(learned.get("cpt", 4))),
            int(learned.get("runs", 0)) > 0,
            {
                int(found[1]): _size(value)
                for name, value in learned.items()
                if (found := _SIZE.fullmatch(name))
            },
        )

    def _view(self, batch_id: str, raw: Mapping[bytes, bytes]) -> BatchView:
        template = raw.get(b"template", b"")
        fields = {text(name): text(value) for name, value in raw.items() if name != b"template"}
        return view_of(batch_id, fields, self._metadata(batch_id, fields["tag"], template))

    def _metadata(self, batch_id: str, tag: str, template: bytes) -> Mapping[str, Any]:
        known = self._plans.get(f"{batch_id}~{tag}")
        if known is None:
            try:
                opened = self.broker.seal.open(template, f"{batch_id}~{tag}", "plan")
                known = BatchPlan.from_bytes(opened).metadata
            except SollolError:
                known = {}  # a page that looks on has no key
            if len(self._plans) > MOST_FED:
                self._plans.clear()
            self._plans[f"{batch_id}~{tag}"] = known
        return known

    async def _sure(self, verb: str, *arguments: object) -> Any:
        return await self.broker.sure_link.call(*self.broker.command(verb, *arguments))

    async def _call(self, verb: str, *arguments: object) -> Any:
        return await self.broker.link.call(*self.broker.command(verb, *arguments))


def _size(text: str) -> SizeSeen:
    took_ms, chars, _ = text.split("|")
    return SizeSeen(float(took_ms), float(chars))


def lost(batch_id: str) -> JobLost:
    """The error of a batch that is not there."""
    return JobLost(f"batch {batch_id} is not known here: it has expired, or the id is wrong")
