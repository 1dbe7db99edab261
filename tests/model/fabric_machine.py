"""Any order of calls of the function library, on a real server, held against what is expected of it.

Nothing sleeps: a lease runs out when its score is written into the past. A server that fails over to an older replica
is one whose keys are put back as they were.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]  # it ships no stubs
import redis
from expected import CONCURRENCY, ENDED, Expected, Job
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from seen import INBOX, MODELS, check, states

from fabric_kit import TTL_MS, Fabric
from sollol_broker.broker import Broker, ClaimRequest, Claims, LaneOffer, Lease, ModelOffer
from sollol_broker.claim_rule import share_of
from sollol_broker.library import Library
from sollol_broker.operations import Operations
from sollol_broker.url import parse

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])
_IDS = st.sampled_from([f"j{number}" for number in range(8)])
_WORKERS = st.sampled_from(["w1", "w2", "w3"])
# Which of several, counted from the newest.
_PICK = st.integers(0, 4)
_DEADLINE_MS = 600_000
_LIMITS = {"max_bytes": 10**9, "app:quota": msgpack.packb({"concurrency": CONCURRENCY})}


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that may happen; the weight says how often."""

    name: str
    weight: int
    when: Callable[[Any], object]
    arguments: Mapping[str, st.SearchStrategy[Any]]


_ACTIONS: list[Action] = []


def action(
    weight: int,
    when: Callable[[Any], object] = lambda self: True,
    **arguments: st.SearchStrategy[Any],
) -> Callable[[F], F]:
    """Enter a method of the machine as a thing that may happen while `when` holds."""

    def enter(method: F) -> F:
        _ACTIONS.append(Action(method.__name__, weight, when, arguments))
        return method

    return enter


@dataclass(frozen=True, slots=True)
class Memory:
    """What a replica had when it stopped following."""

    keys: dict[bytes, tuple[int, bytes]]
    expected: Expected


class FabricMachine(RuleBasedStateMachine):
    """Set `url` and `functions` in a subclass."""

    url: str
    functions: Library | None = None

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.raw: Any = redis.Redis.from_url(self.url)
        self.raw.flushall()
        self.fabric = Fabric(Broker(parse(self.url), name="machine", functions=self.functions))
        self.broker = self.fabric.broker
        self.expected = Expected()
        self.memory: Memory | None = None
        self.nonces = itertools.count(1)
        # All that were ever given out: their holders may believe in them for as long as they like.
        self.leases: list[Lease] = []
        # By worker: its last claim, to be repeated as after a lost reply.
        self.requests: dict[str, ClaimRequest] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one call."""
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        """A client that listens, and workers."""
        keep = {"inbox_ttl_ms": TTL_MS, "app_ttl_ms": TTL_MS}
        self.do(self.broker.attend(INBOX, "tests", app_fields={}, **keep))
        self.join("w1")
        self.join("w2")
        for model in MODELS:  # much work was done, so second copies may be made
            self.raw.hset(self.broker.keys.learned(model), "work", 1e12)
            self.raw.pexpire(self.broker.keys.learned(model), TTL_MS)

    @rule(data=st.data())
    def happen(self, data: st.DataObject) -> None:
        """One thing happens. Rules of their own would each be left out of half of all runs."""
        possible = [each for each in _ACTIONS if each.when(self)]
        names = [each.name for each in possible for _ in range(each.weight)]
        name = data.draw(st.sampled_from(names), label="next")
        chosen = next(each for each in possible if each.name == name)
        drawn = {label: data.draw(strategy, label=label) for label, strategy in chosen.arguments.items()}
        getattr(self, name)(**drawn)

    # --- clients

    @action(
        3,
        job_id=_IDS,
        model=st.sampled_from(MODELS),
        app=st.sampled_from(["free", "quota"]),
        stream=st.booleans(),
        hedge=st.sampled_from([True, True, False]),
        request=st.sampled_from(["", "", "", "same"]),
        deadline=st.sampled_from([False, False, True]),
        blobs=st.integers(0, 2),
    )
    def submit(
        self,
        job_id: str,
        model: str,
        app: str,
        stream: bool,
        hedge: bool,
        request: str,
        deadline: bool,
        blobs: int,
    ) -> None:
        """A job is submitted, once or again."""
        inputs = tuple(b"blob" for _ in range(blobs))
        size = len(b"envelope of " + job_id.encode()) + sum(map(len, inputs))
        job = Job(job_id, model, app, stream, hedge, request, deadline, size)
        wanted = self.expected.submit(job)
        reply = self.do(
            self.fabric.submit(
                job_id,
                model=model,
                app=app,
                stream=stream,
                hedge=1 if hedge else -1,
                cache_key=request,
                deadline_ms=_DEADLINE_MS if deadline else 0,
                blobs=inputs,
                inbox=INBOX,
            )
        )
        assert reply[: len(wanted)] == wanted

    @action(1, when=lambda self: self.expected.jobs, pick=_PICK)
    def cancel(self, pick: int) -> None:
        """A job is cancelled, maybe after its end."""
        job = _picked(list(self.expected.jobs.values()), pick)
        wanted = job.state if job.is_over else "cancelled"
        if not job.is_over:
            self.expected.end(job, "cancelled")
        assert self.do(self.broker.cancel(job.id)) == wanted

    # --- workers

    @action(1, worker=_WORKERS)
    def join(self, worker: str) -> None:
        """A worker advertises."""
        usual = share_of(load_ms=0, prompt_ms=1, output_ms=10)
        self.do(self.fabric.worker(worker, models=dict.fromkeys(MODELS, usual)))
        self.expected.workers.add(worker)

    @action(1, worker=_WORKERS)
    def leave(self, worker: str) -> None:
        """A worker goes; what it runs is left to its leases."""
        self.do(self.broker.leave(worker))
        self.expected.workers.discard(worker)
        self.expected.last_claim.pop(worker, None)
        self.requests.pop(worker, None)

    @action(
        4,
        when=lambda self: any(job.state == "queued" for job in self.expected.jobs.values()),
        worker=_WORKERS,
        free=st.integers(1, 3),
    )
    def claim(self, worker: str, free: int) -> None:
        """A worker asks for jobs."""
        request = self._request(worker, free)
        self._take(worker, request, self.do(self.broker.claim(request)))

    @action(3, when=lambda self: self.may_be_late, worker=_WORKERS)
    def claim_second_copies(self, worker: str) -> None:
        """What runs is late, and another worker has room."""
        self.wait_long()
        self.claim(worker, 3)

    @action(1, when=lambda self: self.requests, pick=_PICK)
    def claim_again(self, pick: int) -> None:
        """A worker repeats its last claim, whose reply was lost."""
        worker, request = _picked(list(self.requests.items()), pick)
        claims = self.do(self.broker.claim(request))
        last = self.expected.last_claim.get(worker, [])
        if claims is None or not last or last[0].nonce != request.nonce:
            self._take(worker, request, claims)
            return
        still = [each for each in last if each in self._held()]
        assert [each.lease for each in claims.jobs] == still, "a repeated claim gave something else"

    @action(2, when=lambda self: self.leases, pick=_PICK, step=st.sampled_from([1, 1, 0, 0, 2]))
    def emit(self, pick: int, step: int) -> None:
        """A worker, maybe one that lost the job, shows the next piece, or the last one again, or leaves one out."""
        lease = _picked(self.leases, pick)
        job = self.expected.jobs.get(lease.job_id)
        seq = max(1, (job.seq if job else 0) + step)
        wanted = self.expected.emit(lease, seq)
        assert self.do(self.broker.emit(lease, seq, b"piece")) == wanted, "emit"

    @action(2, when=lambda self: self.leases, pick=_PICK, worker=st.none() | _WORKERS)
    def finish(self, pick: int, worker: str | None) -> None:
        """A worker, maybe one that lost the job, answers, maybe again; and asks for the next."""
        self._finish(_picked(self.leases, pick), worker)

    @action(2, when=lambda self: self.leases, pick=_PICK, retry=st.booleans(), most_errors=st.integers(1, 3))
    def fail(self, pick: int, retry: bool, most_errors: int) -> None:
        """A worker, maybe one that lost the job, reports an error."""
        lease = _picked(self.leases, pick)
        wanted = self.expected.fail(lease, retry=retry, most_errors=most_errors)
        told = self.broker.fail(lease, b"error", retry=retry, most_errors=most_errors, backoff_ms=60_000)
        assert self.do(told) == wanted, "fail"

    @action(1, when=lambda self: self.leases, pick=_PICK)
    def release(self, pick: int) -> None:
        """A worker, maybe one that lost the job, hands it back."""
        lease = _picked(self.leases, pick)
        wanted = self.expected.release(lease)
        assert self.do(self.broker.release(lease)) == wanted, "release"

    @action(1, when=lambda self: self.leases, most=st.integers(1, 4))
    def renew(self, most: int) -> None:
        """A worker keeps its leases, with some that it lost."""
        some = self.leases[-most:]
        wanted = [each.job_id for each in some if not self.expected.renew(each)]
        assert self.do(self.broker.renew(some, TTL_MS, patience_seconds=1)) == wanted, "renew"

    # --- time

    @action(3, when=lambda self: self._held(), pick=_PICK)
    def lapse(self, pick: int) -> None:
        """A lease runs out."""
        lease = _picked(self._held(), pick)
        job = self.expected.jobs[lease.job_id]
        member = f"{job.id}|h" if lease == job.second else job.id
        self.raw.zadd(self.broker.keys.leases, {member: 1}, xx=True)
        job.lapsed.add(lease)

    @action(1, when=lambda self: any(job.deadline for job in self.expected.unfinished()), pick=_PICK)
    def pass_deadline(self, pick: int) -> None:
        """A deadline passes."""
        job = _picked([job for job in self.expected.unfinished() if job.deadline], pick)
        self.raw.zadd(self.broker.keys.deadlines, {job.id: 1}, xx=True)
        self.raw.hset(self.broker.keys.job(job.id), "deadline", "1")
        job.is_late = True

    @action(1, when=lambda self: any(job.errors for job in self.expected.unfinished()))
    def wait_long(self) -> None:
        """Backoffs end, and all that runs and may be hedged is late."""
        for key in (self.broker.keys.delayed, self.broker.keys.hedges):
            if members := self.raw.zrange(key, 0, -1):
                self.raw.zadd(key, dict.fromkeys(members, 1), xx=True)

    @action(
        3,
        when=lambda self: any(job.lapsed or job.is_late for job in self.expected.unfinished()),
        most_crashes=st.sampled_from([1, 1, 2, 3]),
    )
    def reap(self, most_crashes: int) -> None:
        """Somebody cleans up."""
        reaped = self.do(self.broker.reap(most_crashes=most_crashes))
        now = states(self.raw, list(self.expected.jobs))
        wanted = self.expected.reaped(now, most_crashes)
        assert (reaped.given_back, reaped.dead, reaped.expired) == wanted, "reap"

    # --- operators

    @action(
        2,
        when=lambda self: any(job.may_be_revived for job in self.expected.jobs.values()),
        pick=_PICK,
        retry=st.booleans(),
    )
    def letter(self, pick: int, retry: bool) -> None:
        """A dead letter is put back in line, or dropped; or so is something that is none, or has failed."""
        jobs = sorted(self.expected.jobs.values(), key=lambda job: job.may_be_revived)
        job, operations = _picked(jobs, pick), Operations(self.broker)
        verb = operations.retry if retry else operations.drop
        reply = self.do(verb([job.id]))[job.id]
        if retry and job.may_be_revived:
            assert reply == "retried"
            self.expected.revive(job)
        elif job.state != "dead":
            assert reply == job.state
        else:
            assert reply == "dropped"
            del self.expected.jobs[job.id]

    @action(1)
    def switch_limits(self) -> None:
        """Limits are set, or taken away, in the middle of it all."""
        self.expected.limited = not self.expected.limited
        self.raw.delete(self.broker.keys.policy)
        if self.expected.limited:
            self.raw.hset(self.broker.keys.policy, mapping=_LIMITS)

    # --- the server

    @action(1, when=lambda self: self.expected.jobs)
    def remember(self) -> None:
        """A replica has followed so far."""
        keys = self.raw.keys("*")
        with self.raw.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.pttl(key)
                pipe.dump(key)
            flat = pipe.execute()
        dumped = zip(flat[::2], flat[1::2], strict=True)
        self.memory = Memory(dict(zip(keys, dumped, strict=True)), copy.deepcopy(self.expected))

    @action(2, when=lambda self: self.memory is not None and self.memory.expected != self.expected)
    def fail_over(self) -> None:
        """The replica takes over: all that came after it stopped following is lost."""
        assert self.memory is not None
        self.raw.flushall()
        with self.raw.pipeline(transaction=False) as pipe:
            for key, (ttl, value) in self.memory.keys.items():
                pipe.restore(key, max(ttl, 0), value)
            pipe.execute()
        self.expected = copy.deepcopy(self.memory.expected)
        self.requests.clear()

    # --- what always holds

    @invariant()
    def all_is_as_expected(self) -> None:
        """Every promise that can be seen."""
        check(self.raw, self.expected)

    def teardown(self) -> None:
        """Whatever has happened: a worker that does its work ends all jobs, and the books are closed."""
        try:
            self._end_all()
        finally:
            self.do(self.broker.close())
            self.runner.close()
            self.raw.flushall()
            self.raw.close()

    def _end_all(self) -> None:
        self.join("w9")
        # Each round ends, revives or lets lapse something; a job takes few.
        for _ in range(6 * len(self.expected.jobs) + 6):
            if not any(self.expected.unfinished()):
                break
            self.wait_long()
            for lease in self._held():
                self._finish(lease, None)
            self.reap(3)
            self.claim("w9", 3)
        left = [job.id for job in self.expected.unfinished()]
        assert not left, f"nobody could end {left}"
        check(self.raw, self.expected)

    @property
    def may_be_late(self) -> bool:
        """Whether a second copy of something may start."""
        return any(job.hedge and job.held_by and not job.second for job in self.expected.unfinished())

    def _held(self) -> list[Lease]:
        """Leases that hold now."""
        both = (lease for job in self.expected.unfinished() for lease in (job.held_by, job.second))
        return [lease for lease in both if lease]

    def _finish(self, lease: Lease, worker: str | None) -> None:
        wanted = self.expected.finish(lease)
        request = self._request(worker, 1) if worker else None
        done = self.do(self.broker.finish(lease, b"answer", request, used=self.fabric.used()))
        assert done.taken == wanted, "finish"
        if worker and request:
            self._take(worker, request, done.claims)

    def _request(self, worker: str, free: int) -> ClaimRequest:
        busy = sum(
            worker in (job.holder if job.held_by else "", job.second_holder if job.second else "")
            for job in self.expected.unfinished()
        )
        offers = tuple(ModelOffer(model, 0.0, 1.0, 10.0) for model in MODELS)
        nonce = f"n{next(self.nonces)}"
        lane = LaneOffer(free, offers, busy=busy)
        request = replace(self.fabric.request(worker, nonce=nonce), lanes=(lane,), most=free)
        self.requests[worker] = request
        return request

    def _take(self, worker: str, request: ClaimRequest, claims: Claims | None) -> None:
        """Enter what a claim gave; jobs that were late may have ended in it."""
        if worker not in self.expected.workers:
            assert claims is None, "a worker that is not there got an answer"
            return
        assert claims is not None
        assert len(claims.jobs) <= request.most
        late = [job for job in self.expected.unfinished() if job.is_late and job.state == "queued"]
        for job, state in zip(late, states(self.raw, [job.id for job in late]).values(), strict=True):
            if state in ENDED:
                self.expected.end(job, "expired")
        for row in claims.jobs:
            assert row.lease.nonce == request.nonce
            self.expected.claimed(worker, row)
        if claims.jobs:
            self.expected.last_claim[worker] = [row.lease for row in claims.jobs]
            self.leases += self.expected.last_claim[worker]


def _picked(some: Sequence[T], pick: int) -> T:
    return some[-1 - pick % len(some)]
