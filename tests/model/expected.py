"""What the function library promises, as plain data: the state that the machine expects Redis to be in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sollol_broker.broker import Claimed, Lease
from sollol_broker.words import TERMINAL

ENDED = frozenset(str(state) for state in TERMINAL)
# What one application may have unfinished, while limits are on.
CONCURRENCY = 3


@dataclass(slots=True)
class Job:
    """One job.

    Attributes:
        held_by: the lease of the attempt that runs; None = it waits, or has ended. second: of a second copy.
        top: the highest fence given out. fence, nonce: of the present or last attempt.
        size: bytes entered into the books of limits; counted: in those of its application's quota.
        has_failed: on every try; its body is kept, so that it can be tried again.
        is_late: its deadline has passed. lapsed: leases that have run out and were not reaped yet.
        events: as they have to lie in its stream.
    """

    id: str
    model: str
    app: str
    stream: bool
    hedge: bool
    request: str
    deadline: bool
    size: int
    counted: bool = False
    state: str = "queued"
    top: int = 0
    fence: int = 0
    nonce: str = ""
    held_by: Lease | None = None
    second: Lease | None = None
    holder: str = ""
    second_holder: str = ""
    seq: int = 0
    errors: int = 0
    crashes: int = 0
    has_failed: bool = False
    is_late: bool = False
    lapsed: set[Lease] = field(default_factory=set)
    events: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether it has its one end."""
        return self.state in ENDED

    @property
    def may_be_revived(self) -> bool:
        """Whether an operator may put it back in line."""
        return self.state == "dead" or self.has_failed


@dataclass(slots=True)
class Expected:
    """The whole fabric.

    Attributes:
        told: ends that its submitter's inbox holds. shared: the job that answers each request.
        last_claim: by worker, the leases that its last successful claim gave it.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    stats: Counter[str] = field(default_factory=Counter)
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    shared: dict[str, str] = field(default_factory=dict)
    last_claim: dict[str, list[Lease]] = field(default_factory=dict)
    limited: bool = False

    def unfinished(self) -> Iterator[Job]:
        """Jobs that wait or run."""
        return (job for job in self.jobs.values() if not job.is_over)

    def submit(self, job: Job) -> list[str]:
        """The reply's words; the job is taken in where that is "queued"."""
        if known := self.jobs.get(job.id):
            return ["known", known.state]
        same = self.jobs.get(self.shared.get(job.request, ""))
        if same is not None and (same.state == "done" or self.workers):
            return ["shared", same.id, same.state]
        if not self.workers:
            return ["no_node"]
        if self.limited and job.app == "quota" and self._running_up(job.app) >= CONCURRENCY:
            return ["full", "concurrency"]
        job.size, job.counted = job.size * self.limited, self.limited and job.app == "quota"
        self.jobs[job.id] = job
        self.stats["submitted"] += 1
        if job.request:
            self.shared[job.request] = job.id
        return ["queued"]

    def _running_up(self, app: str) -> int:
        return sum(job.counted for job in self.unfinished() if job.app == app)

    def claimed(self, worker: str, row: Claimed) -> None:
        """A claim gave this job to a worker."""
        job, lease = self.jobs[row.lease.job_id], row.lease
        job.top += 1
        assert lease.fence == job.top, "a fence was given out twice, or left out"
        if row.is_hedge:
            assert job.state == "running", f"a second copy of a job that is {job.state}"
            assert job.hedge
            assert job.second is None
            assert job.seq == 0
            assert job.holder != worker
            job.second, job.second_holder = lease, worker
            self.stats["hedges"] += 1
            return
        assert job.state == "queued", f"a job that is {job.state} was claimed"
        job.state, job.held_by, job.holder = "running", lease, worker
        job.fence, job.nonce, job.seq = lease.fence, lease.nonce, 0
        self._started(job)

    def _started(self, job: Job) -> None:
        if job.stream:
            job.events.append(("start", str(job.fence)))

    def promote(self, job: Job) -> None:
        """The second copy becomes the first."""
        lease = job.second
        assert lease is not None
        job.lapsed -= {job.held_by} if job.held_by else set()
        job.held_by, job.holder, job.second = lease, job.second_holder, None
        job.fence, job.nonce = lease.fence, lease.nonce
        self._started(job)

    def win(self, job: Job, lease: Lease) -> bool:
        """Whether this lease may write; a second copy becomes the first by it."""
        if lease == job.held_by:
            return True
        if lease != job.second:
            return False
        self.promote(job)
        self.stats["hedges_won"] += 1
        return True

    def emit(self, lease: Lease, seq: int) -> int:
        """A piece is shown: 1; 0 it is not the caller's; -n piece n is missing before it."""
        job = self.jobs.get(lease.job_id)
        if job is None or (lease == job.second and job.seq > 0) or not self.win(job, lease):
            return 0
        job.second = None
        if seq > job.seq + 1:
            return -(job.seq + 1)
        if seq > job.seq:
            job.seq = seq
            job.events.append(("piece", str(lease.fence), str(seq)))
        return 1

    def finish(self, lease: Lease) -> bool:
        """An answer is given."""
        job = self.jobs.get(lease.job_id)
        if job is None:
            return False
        if self.win(job, lease):
            self.end(job, "done")
            return True
        return job.state == "done" and (job.fence, job.nonce) == (lease.fence, lease.nonce)

    def fail(self, lease: Lease, *, retry: bool, most_errors: int) -> str:
        """An attempt did not work out."""
        job = self.jobs.get(lease.job_id)
        if job is not None and retry and self._runs_on(job, lease):
            return "retry"
        if job is None or lease != job.held_by:
            return "stale"
        job.errors += 1
        if not retry or job.errors >= most_errors:
            self.end(job, "failed")
            job.has_failed = retry
            return "end"
        self.requeue(job)
        return "retry"

    def release(self, lease: Lease) -> bool:
        """An attempt is handed back."""
        job = self.jobs.get(lease.job_id)
        if job is not None and self._runs_on(job, lease):
            return True
        if job is None or lease != job.held_by:
            return False
        self.requeue(job)
        return True

    def _runs_on(self, job: Job, lease: Lease) -> bool:
        if job.second is None:
            return False
        if lease == job.second:
            job.second = None
            return True
        if lease == job.held_by:
            self.promote(job)
            return True
        return False

    def renew(self, lease: Lease) -> bool:
        """A lease is kept."""
        job = self.jobs.get(lease.job_id)
        if job is None or lease not in (job.held_by, job.second):
            return False
        job.lapsed.discard(lease)
        return True

    def requeue(self, job: Job) -> None:
        """It waits again."""
        job.state, job.held_by, job.holder, job.nonce = "queued", None, "", ""
        self.stats["requeued"] += 1

    def end(self, job: Job, state: str) -> None:
        """Its one end."""
        assert not job.is_over, f"{job.id} is {job.state} and became {state}"
        job.state, job.held_by, job.second = state, None, None
        job.lapsed.clear()
        job.events.append(("end", state, str(job.fence)))
        self.told[job.id, state] += 1
        self.stats[state] += 1
        if state != "done" and self.shared.get(job.request) == job.id:
            del self.shared[job.request]

    def reaped(self, now: dict[str, str], most_crashes: int) -> tuple[int, int, int]:
        """Leases that ran out and deadlines that passed are dealt with; `now` says which jobs died of it."""
        back = dead = expired = 0
        for job in self.unfinished():
            first_lapsed = job.held_by in job.lapsed
            if job.second in job.lapsed and not first_lapsed:
                job.second = None
            if not first_lapsed:
                continue
            job.crashes += 1
            if job.second is not None:
                self.promote(job)
            elif now.get(job.id) == "dead":
                assert job.crashes >= most_crashes, "dead before its time"
                self.end(job, "dead")
                dead += 1
            else:
                self.requeue(job)
                back += 1
        for job in self.unfinished():
            if job.is_late:
                self.end(job, "expired")
                expired += 1
        return back, dead, expired

    def revive(self, job: Job) -> None:
        """A dead letter, or what has failed on every try, goes back in line."""
        job.state, job.nonce, job.seq, job.errors, job.crashes = "queued", "", 0, 0, 0
        job.is_late, job.deadline, job.has_failed, job.request = False, False, False, ""
        job.counted, job.size = self.limited and job.app == "quota", job.size * self.limited
        job.events.clear()
        self.stats["submitted"] += 1
