"""Reads from Redis what explain.py needs to say why a job is where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .broker import Broker
from .claim_rule import Share
from .codec import unpack
from .envelope import Requires
from .errors import InvalidJob, JobLost
from .explain import Candidate, Explanation, Line, NodeReason, can_any, reasons, start_in_ms
from .features import complexity, needs_gpu
from .history import refusals, span, taken, timeline
from .names import key_part
from .registry import NodeView, Registry, WorkerView
from .told import number, text, whole
from .words import JobState

# It is read apart, where it is needed.
_UNREAD = (b"requires",)
# As long as `_heads.lua` keeps a job from a node that has failed it.
_FAILED_PATIENCE_MS = 30_000.0
_MOST_REQUIRES_BYTES = 64 * 1024


class Explainer:
    """Explains jobs of one fabric."""

    def __init__(self, broker: Broker, registry: Registry) -> None:
        self._broker = broker
        self._registry = registry

    async def explain(self, job_id: str) -> Explanation:
        """A job's history, and while it waits what each node makes of it.

        Raises:
            JobLost: Redis does not know it (any more).
        """
        fields = await self._fields(job_id)
        if fields.get("state") not in list(JobState):
            raise JobLost(
                f"job {job_id} is not known here: its record expired, the id is wrong, or the fabric is another"
            )
        told = Explanation(
            id=job_id,
            state=JobState(fields["state"]),
            model=fields.get("model", ""),
            app=fields.get("app", ""),
            priority=whole(fields.get("priority")),
            attempt=whole(fields.get("attempt")),
            summary="",
            timeline=timeline(fields),
            taken=taken(fields),
            refusals=refusals(fields),
            **_asked(fields),
        )
        now_ms = await self._now_ms()
        if told.state is JobState.QUEUED:
            return await self._waiting(told, fields, now_ms)
        return replace(told, summary=_summary(told, fields, now_ms))

    async def start_in(self, job_id: str) -> float | None:
        """Seconds until a waiting job should begin; None when it does not wait, or when nobody serves its model."""
        keys = self._broker.keys
        state, model, member = await self._call("HMGET", keys.job(job_id), "state", "queue", "member")
        if state != b"queued" or model is None or member is None:
            return None
        key, now_ms = text(model), await self._now_ms()
        position, waiting, backlog, ref, serving, idle = await asyncio.gather(
            self._call("ZRANK", keys.queue(key), member),
            self._call("ZCARD", keys.queue(key)),
            self._call("HGET", keys.fair(key), "q"),
            self._call("HGET", keys.learned(key), "ref"),
            self._call("ZCOUNT", keys.serves(key), f"{now_ms:.3f}", "+inf"),
            self._call("ZCARD", keys.idle(key)),
        )
        if position is None:
            return None
        ms = start_in_ms(
            position=position,
            waiting=waiting,
            backlog_ms=number(backlog),
            speed=_speed(ref) if serving else 0.0,
            has_free_slot=idle > 0,
        )
        return None if ms is None else round(ms / 1000, 3)

    async def _waiting(self, told: Explanation, fields: Mapping[str, str], now_ms: float) -> Explanation:
        keys, model_key = self._broker.keys, fields.get("queue", "")
        position, waiting, due, backlog, ref, requires, nodes, shares = await asyncio.gather(
            self._call("ZRANK", keys.queue(model_key), fields.get("member", "")),
            self._call("ZCARD", keys.queue(model_key)),
            self._call("ZSCORE", keys.delayed, told.id),
            self._call("HGET", keys.fair(model_key), "q"),
            self._call("HGET", keys.learned(model_key), "ref"),
            self._call("HGET", keys.job(told.id), "requires"),
            self._registry.nodes(),
            self._call("HGETALL", keys.shares(model_key)),
        )
        line = _line(fields, position or 0, waiting, now_ms, _requires(requires))
        by_worker = _shares(shares)
        candidates = [
            _candidate(node, worker, told.model, fields, by_worker.get(worker.id), now_ms)
            for node in nodes
            for worker in node.workers
        ]
        found = reasons(line, candidates)
        start = None
        if position is not None and can_any(found):
            start = start_in_ms(
                position=position,
                waiting=waiting,
                backlog_ms=number(backlog),
                speed=_speed(ref),
                has_free_slot=any(each.code == "ready" for each in found),
            )
        return replace(
            told,
            nodes=found,
            position=position,
            start_in_seconds=None if start is None else round(start / 1000, 3),
            summary=_waits(found, position, start, None if due is None else float(due) - now_ms),
        )

    async def _fields(self, job_id: str) -> dict[str, str]:
        key = self._broker.keys.job(job_id)
        names = [name for name in await self._call("HKEYS", key) if name not in _UNREAD]
        values = await self._call("HMGET", key, *names) if names else []
        return {
            text(name): text(value) for name, value in zip(names, values, strict=True) if value is not None
        }

    async def _now_ms(self) -> float:
        seconds, micros = await self._call("TIME")
        return int(seconds) * 1000 + int(micros) / 1000

    async def _call(self, *command: object) -> Any:
        return await self._broker.link.call(*command)


def _line(
    fields: Mapping[str, str], position: int, waiting: int, now_ms: float, requires: Requires | None
) -> Line:
    parts = fields.get("member", "").split("|")
    prompt, output, submitted, flags = parts[1:5] if len(parts) == 6 else ("0", "0", "0", "")
    return Line(
        model=fields.get("model", ""),
        prompt_tokens=number(prompt),
        output_tokens=number(output),
        waited_ms=max(0.0, now_ms - number(submitted)),
        position=position,
        waiting=max(1, waiting),
        context_tokens=number(fields.get("context")),
        is_batch="b" in flags,
        alone="q" in flags,
        is_bound=bool(set("pqrx") & set(flags)),
        prefers=tuple(fields.get("prefer", "").strip("|").split("|")),
        requires=requires,
    )


def _asked(fields: Mapping[str, str]) -> dict[str, Any]:
    """What is known of the request, and while its member lies in Redis what is predicted of it."""
    task, parts = fields.get("task", ""), fields.get("member", "").split("|")
    if len(parts) != 6:
        return {"task": task}
    prompt, output = whole(parts[1]), whole(parts[2])
    return {
        "task": task,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "size": complexity(prompt + output),
        "wants_gpu": needs_gpu(fields.get("model", ""), task, prompt + output),
    }


def _candidate(
    node: NodeView,
    worker: WorkerView,
    model: str,
    fields: Mapping[str, str],
    share: Share | None,
    now_ms: float,
) -> Candidate:
    failed_here = f"|{key_part(node.name)}|" in fields.get("failed", "")
    return Candidate(
        worker=worker.id,
        node=node.name,
        controls=node.controls,
        state=worker.state,
        serves=model in worker.models,
        slots=worker.slots,
        busy=worker.busy,
        down=next((str(backend["down"]) for backend in worker.backends if backend["down"]), ""),
        has=tuple(sorted(worker.models)),
        labels=worker.labels,
        vram_mib=whole(node.hardware.get("vram_total_mib")),
        failed=failed_here and now_ms - number(fields.get("failed_at")) < _FAILED_PATIENCE_MS,
        share=share,
        short_mib=worker.short_mib(model),
    )


def _shares(flat: list[bytes]) -> dict[str, Share]:
    found = {}
    for worker, share in zip(flat[::2], flat[1::2], strict=True):
        parts = text(share).split("|")
        if len(parts) == 7 and all(part.isdigit() for part in parts):
            found[text(worker)] = Share(*(int(part) for part in parts))
    return found


def _requires(data: bytes | None) -> Requires | None:
    if not data:
        return None
    try:
        wanted = unpack(data, max_bytes=_MOST_REQUIRES_BYTES)
        vram = wanted.get("vram_mib")
        return Requires(
            vram_gb=vram / 1024 if vram else None, labels=wanted.get("labels", []), node=wanted.get("node")
        )
    except (InvalidJob, AttributeError, TypeError, ValueError):
        return None


def _speed(ref: bytes | None) -> float:
    try:
        return float((ref or b"").split(b"|")[2])
    except (IndexError, ValueError):
        return 1.0  # nobody has told yet: `_classes.lua` takes one worker of usual speed


def _waits(
    found: tuple[NodeReason, ...], position: int | None, start_ms: float | None, due_ms: float | None
) -> str:
    if due_ms is not None:
        return f"after an error it waits {span(due_ms)} more before it is tried again"
    if not found:
        return "no worker is connected"
    if not can_any(found):
        return "no node can take it as things are"
    if position is None:
        return "on its way into the line"
    before = "first in line" if not position else f"{position:,} before it"
    return before + ("" if start_ms is None else f"; should start in about {span(start_ms)}")


def _summary(told: Explanation, fields: Mapping[str, str], now_ms: float) -> str:
    node, claimed = fields.get("node", ""), number(fields.get("claimed"))
    ended = number(fields.get("ended")) or now_ms
    ran = span(ended - claimed)
    if told.state is JobState.RUNNING:
        predicted = number(fields.get("predicted"))
        expected = f", of about {span(predicted)} expected" if predicted else ""
        return f"on {node} for {ran}{expected}; attempt {told.attempt}"
    if told.state is JobState.DONE:
        return f"answered by {node} in {ran}; attempt {told.attempt}"
    if told.state is JobState.FAILED:
        return f"on {node} after {ran}; attempt {told.attempt}"
    if told.state is JobState.DEAD:
        return f"{told.attempt} attempts, and each worker died: `sollol dead retry {told.id}` tries again"
    return f"while it ran on {node}" if claimed and told.attempt else "before a node took it"
