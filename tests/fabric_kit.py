"""A small fabric for tests: submits jobs, plays workers, and looks at what lies in Redis."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sollol_broker import (
    Broker,
    Claimed,
    ClaimRequest,
    LaneOffer,
    ModelOffer,
    Requires,
    Submission,
    parse_url,
)
from sollol_broker.broker import Claims, Used
from sollol_broker.claim_rule import Share, share_of
from sollol_broker.fair_order import head_start_ms
from sollol_broker.library import Library
from sollol_broker.names import key_part

LEASE_MS = 60_000
TTL_MS = 60_000


class Fabric:
    """One broker and the ids of what was submitted through it."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.keys = broker.keys
        self.submitted: list[str] = []

    async def submit(
        self, job_id: str, *, model: str = "m", requires: Requires | None = None, **more: Any
    ) -> list[Any]:
        """Submit a job as a client would; the reply with its words decoded."""
        priority = more.pop("priority", 5)
        fields: dict[str, Any] = {
            "job_id": job_id,
            "model": model,
            "app": "tests",
            "priority": priority,
            "head_start_ms": head_start_ms(priority),
            "stream": False,
            "envelope": b"envelope of " + job_id.encode(),
            "inbox": "",
            "result_ttl_ms": TTL_MS,
            "prompt_chars": 400,
            "output_cap": 100,
            "needs": (requires or Requires()).to_bytes(),
        }
        reply = await self.broker.submit(Submission(**(fields | more)))
        self.submitted.append(job_id)
        return [each.decode() if isinstance(each, bytes) else each for each in reply]

    async def worker(
        self,
        worker: str = "w1",
        *,
        node: str = "",
        models: Sequence[str] | Mapping[str, Share] = ("m",),
        ttl_ms: int = TTL_MS,
        fields: Mapping[str, str] | None = None,
        node_fields: Mapping[str, str] | None = None,
    ) -> bool:
        """Advertise a worker; its node is named after it unless told otherwise."""
        usual = share_of(load_ms=0, prompt_ms=1, output_ms=10)
        advertised = await self.broker.advertise(
            worker,
            node or node_of(worker),
            ttl_ms=ttl_ms,
            worker_fields=fields or {"state": "up"},
            node_fields=node_fields or {"os": "linux"},
            models=models if isinstance(models, Mapping) else dict.fromkeys(models, usual),
        )
        return advertised.new_inbox

    def request(self, worker: str = "w1", **more: Any) -> ClaimRequest:
        """What a worker with one lane asks for; `models` may map each model to its load time in ms."""
        models = more.pop("models", ("m",))
        loads = models if isinstance(models, dict) else dict.fromkeys(models, 0.0)
        free, output_ms = more.pop("free", 1), more.pop("output_ms", 10.0)
        offers = tuple(ModelOffer(key_part(name), load, 1.0, output_ms) for name, load in loads.items())
        fields: dict[str, Any] = {
            "worker": worker,
            "node": node_of(worker),
            "nonce": uuid.uuid4().hex,
            "lease_ms": LEASE_MS,
            "lanes": (LaneOffer(free, offers),),
            "most": free,
        }
        return ClaimRequest(**(fields | more))

    async def claim(self, worker: str = "w1", **more: Any) -> list[Claimed]:
        """Claim as a known worker."""
        claims = await self.broker.claim(self.request(worker, **more))
        assert claims is not None, f"{worker} is not known"
        return claims.jobs

    async def claim_with(self, request: ClaimRequest) -> list[Claimed]:
        """Claim with a given request."""
        claims = await self.broker.claim(request)
        assert claims is not None, f"{request.worker} is not known"
        return claims.jobs

    async def claim_one(self, worker: str = "w1", **more: Any) -> Claimed:
        """Claim exactly one job."""
        claimed = await self.claim(worker, **more)
        assert len(claimed) == 1, ids(claimed)
        return claimed[0]

    @staticmethod
    def used(*, prompt_tokens: int = 108, output_tokens: int = 100, run_ms: float = 1_108.0) -> Used:
        """What a job took; unless told otherwise, what was predicted."""
        return Used(prompt_tokens, output_tokens, run_ms)

    async def call(self, *command: object) -> Any:
        """Any command, for looking at what lies in Redis."""
        return await self.broker.link.call(*command)

    async def job(self, job_id: str) -> dict[str, str]:
        """A job's hash."""
        flat = [each.decode() for each in await self.call("HGETALL", self.keys.job(job_id))]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def body(self, job_id: str) -> dict[str, bytes]:
        """A job's envelope ("env") and pictures (by number)."""
        flat = await self.call("HGETALL", self.keys.blob(job_id))
        return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def state(self, job_id: str) -> str:
        """A job's state; "" when Redis does not know it."""
        return (await self.call("HGET", self.keys.job(job_id), "state") or b"").decode()

    async def entries(self, key: str) -> list[dict[str, str]]:
        """A stream's entries as text."""
        found = []
        for _, flat in await self.call("XRANGE", key, "-", "+"):
            texts = [each.decode() for each in flat]
            found.append(dict(zip(texts[::2], texts[1::2], strict=True)))
        return found

    async def bells(self, worker: str) -> int:
        """How often a worker was woken since its inbox came into being."""
        return sum(entry["t"] == "bell" for entry in await self.entries(self.keys.inbox(worker)))

    async def members(self, key: str) -> list[str]:
        """A sorted set's members, least score first; of a queue's members the ids."""
        return [each.decode().split("|")[0] for each in await self.call("ZRANGE", key, 0, -1)]

    async def queue(self, model: str = "m") -> list[str]:
        """Ids of the jobs that wait for a model, in order."""
        return await self.members(self.keys.queue(key_part(model)))

    async def stat(self, name: str) -> int:
        """One of the fabric's counters."""
        return int(await self.call("HGET", self.keys.stats, name) or 0)

    async def now_ms(self) -> float:
        """Redis' clock."""
        seconds, micros = await self.call("TIME")
        return int(seconds) * 1000 + int(micros) / 1000

    async def expire_lease(self, job_id: str) -> None:
        """Let a lease run out, as if its worker had died a while ago."""
        await self.call("ZADD", self.keys.leases, "XX", 1, job_id)

    async def reap(self, *, most: int = 100, most_crashes: int = 3) -> tuple[int, int, int]:
        """(given back, dead, expired)"""
        reaped = await self.broker.reap(most=most, most_crashes=most_crashes)
        return reaped.given_back, reaped.dead, reaped.expired


def node_of(worker: str) -> str:
    """The node that a worker stands on unless a test says otherwise."""
    return f"node-of-{worker}"


def ids(claimed: Sequence[Claimed] | Claims | None) -> list[str]:
    """The ids of claimed jobs."""
    return [each.lease.job_id for each in (claimed.jobs if isinstance(claimed, Claims) else claimed or [])]


@asynccontextmanager
async def fabric_at(url: str, *, functions: Library | None = None) -> AsyncIterator[Fabric]:
    """A fabric on a server; at the end each job that still lives is cancelled, and so must leave nothing."""
    broker = Broker(parse_url(url), name="tests", functions=functions)
    await broker.open()
    fabric = Fabric(broker)
    try:
        yield fabric
        for job_id in fabric.submitted:
            await broker.cancel(job_id)
        for key in (fabric.keys.leases, fabric.keys.delayed, fabric.keys.deadlines):
            assert await fabric.members(key) == [], f"{key} still names jobs that have ended"
        for job_id in fabric.submitted:
            is_kept = await fabric.call("ZSCORE", fabric.keys.failed, job_id) is not None
            if not is_kept and await fabric.state(job_id) != "dead":
                assert not await fabric.body(job_id), f"the body of {job_id} is left"
    finally:
        await broker.close()
