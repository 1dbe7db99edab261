"""The pull loop: claims jobs for the free slots, runs them, and reports how each ended.

One claim is under way at a time. A job that ends while none is, claims the next in the same call; one
that ends meanwhile leaves its slot to the claim that follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sollol_broker.broker import Broker, Claimed, ClaimRequest, Claims, Lease, Used
from sollol_broker.controls import Controls
from sollol_broker.envelope import Envelope
from sollol_broker.errors import BackendError, BackendTimeout, DeadlineExceeded, InvalidJob, SollolError
from sollol_broker.live_log import LiveLog
from sollol_broker.outcome import pack_error

from .config import WorkerConfig
from .controls import labelled, offered
from .figures import Figures
from .health import is_backends_fault
from .lane import Lane
from .runner import Answered, Runner
from .spans import Spans
from .telling import tell_of_answer, tell_of_failure

log = logging.getLogger(__name__)

# A job with nowhere else to go waits this long, or up to twice it, before its node gets it again.
_BACKOFF_MS = 500
# A Redis that is away must not keep a worker that leaves: what it cannot hand back then goes to others when
# the lease runs out.
_LAST_WORD_SECONDS = 2.0
# Cancels that were faster than their job; they matter for milliseconds.
_EARLY_KEPT = 256


@dataclass(slots=True)
class Running:
    """A job in one of our slots.

    Attributes:
        runner: what runs it, once it does.
        asked_at: monotonic time when its claim was sent; its lease began no sooner.
        alone: nothing may run beside it.
    """

    lease: Lease
    lane: Lane
    asked_at: float
    alone: bool = False
    task: asyncio.Task[None] | None = None
    runner: Runner | None = None
    called_off: bool = False
    # Its answer is on the way: cutting that off would lose the jobs that the same call claims.
    delivering: bool = False


@dataclass(slots=True)
class Puller:
    """Keeps the slots of all lanes busy.

    Args:
        advertise: called when Redis does not know this worker (any more), and when a lane has gone down.
        figures: where what becomes of its jobs is counted.
        live: hears how jobs end.
    """

    broker: Broker
    worker: str
    config: WorkerConfig
    lanes: list[Lane]
    advertise: Callable[[], Awaitable[None]]
    live: LiveLog
    vram_mib: int = 0
    controls: Controls = field(default_factory=Controls)
    figures: Figures = field(default_factory=Figures)
    running: dict[str, Running] = field(default_factory=dict)
    _claiming: bool = False
    # Somebody wanted to claim while a claim was under way: look again after it.
    _missed: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False
    _loop_task: asyncio.Task[None] | None = None
    _look_timer: asyncio.TimerHandle | None = None
    _claims: int = 0
    _called_off_early: OrderedDict[tuple[str, int], None] = field(default_factory=OrderedDict)
    _reports: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> None:
        """Begin to claim."""
        self._loop_task = asyncio.create_task(self._loop())

    def wake(self) -> None:
        """Look for work now: a bell rang, or a lane has changed."""
        self._wake.set()

    def stop_claiming(self) -> None:
        """From now on claim nothing more."""
        self._stopping = True
        self.wake()

    async def stop(self, *, drain_seconds: float) -> None:
        """Claim nothing more; let running jobs end for so long, then hand the rest back."""
        self.stop_claiming()
        if self._loop_task is not None:
            await _ended(self._loop_task)
        await self.drain(drain_seconds)

    async def drain(self, seconds: float) -> None:
        """Let running jobs end for so long, then hand the rest back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (jobs := self._tasks()) and not self._hurry.is_set():
                    hurry = asyncio.ensure_future(self._hurry.wait())
                    try:
                        await asyncio.wait({*jobs, hurry}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        hurry.cancel()
        held = list(self.running.values())
        done = await asyncio.gather(*(self._hand_back(each) for each in held), return_exceptions=True)
        for running, error in zip(held, done, strict=True):
            if isinstance(error, BaseException):
                job_id = running.lease.job_id
                log.error("job %s: it could not be handed back, its lease runs out", job_id, exc_info=error)

    def hurry(self) -> None:
        """While it stops: let no job end, hand all back."""
        self._hurry.set()

    def call_off(self, job_id: str, fence: int | None = None) -> None:
        """Stop a job that is no longer ours (cancelled, or its lease is lost); its backend slot becomes free."""
        running = self.running.get(job_id)
        if running is None and fence is not None:
            # The cancel overtook the claim's reply, which comes by another connection.
            self._called_off_early[job_id, fence] = None
            if len(self._called_off_early) > _EARLY_KEPT:
                self._called_off_early.popitem(last=False)
        if running is None or running.delivering or (fence is not None and running.lease.fence != fence):
            return
        if running.called_off:
            return  # a second cancellation would interrupt the closing of the backend's connection
        running.called_off = True
        if running.task is not None:
            # Not before its first step, or it would never clean up behind itself.
            asyncio.get_running_loop().call_soon(running.task.cancel)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {running.task for running in self.running.values() if running.task} | self._reports

    async def _loop(self) -> None:
        while not self._stopping:
            self._wake.clear()
            if self._claiming:
                self._missed = True
            elif self._free() > 0:
                try:
                    await self._claim()
                except SollolError as error:
                    log.warning("claim: %s", error)
                except Exception:  # a worker that claims no more must not look as if it did
                    log.exception("claim: a mistake of ours")
            with contextlib.suppress(TimeoutError):
                # Spread out, so that workers which lost the same bell do not look in step.
                async with asyncio.timeout(self.config.poll_seconds * random.uniform(0.7, 1.3)):
                    await self._wake.wait()

    def _free(self) -> int:
        if any(running.alone for running in self.running.values()):
            return 0
        free = sum(lane.free for lane in self.lanes)
        if self.config.slots is None:
            return free
        return max(0, min(free, self.config.slots - sum(lane.busy for lane in self.lanes)))

    def _request(self) -> ClaimRequest:
        self._claims += 1
        most = self._free()
        return ClaimRequest(
            worker=self.worker,
            node=self.config.node,
            nonce=f"{random.getrandbits(64):016x}{self._claims:x}",
            lease_ms=self.config.lease_ms,
            lanes=tuple(offered(self.controls, lane.offer(most), lane.models) for lane in self.lanes),
            most=most,
            labels=labelled(self.config.labels, self.controls, (lane.models for lane in self.lanes)),
            vram_mib=self.vram_mib,
            price=self.controls.price,
        )

    async def _claim(self) -> None:
        self._claiming, asked_at = True, time.monotonic()
        try:
            claims = await self.broker.claim(self._request())
        finally:
            self._claimed()
        await self._take(claims, asked_at)

    def _claimed(self) -> None:
        self._claiming = False
        if self._missed:
            self._missed = False
            self.wake()

    async def _take(self, claims: Claims | None, asked_at: float) -> None:
        if claims is None:
            if await self._advertise():
                self.wake()
            return
        if self._stopping:
            # Claimed before we knew; whoever drains may be past looking for what runs.
            await asyncio.gather(*(self._release(job.lease) for job in claims.jobs))
            return
        if claims.look_again_ms is not None:
            self._look_again_in(claims.look_again_ms / 1000)
        for job in claims.jobs:
            self._begin(job, asked_at)

    def _look_again_in(self, seconds: float) -> None:
        """A waiting job may suit us by then; sooner than the usual look."""
        if seconds < self.config.poll_seconds:
            if self._look_timer is not None:
                self._look_timer.cancel()
            self._look_timer = asyncio.get_running_loop().call_later(seconds, self.wake)

    def _begin(self, claimed: Claimed, asked_at: float) -> None:
        lease = claimed.lease
        if (lease.job_id, lease.fence) in self._called_off_early:
            return
        if lease.job_id in self.running:  # an earlier attempt of ours that Redis has given up
            self.call_off(lease.job_id)
        try:
            envelope = Envelope.from_bytes(self.broker.envelope(claimed))
            lane = self._lane_for(envelope.model)
        except SollolError as error:
            report = asyncio.create_task(self._report(lease, error, claimed))
            self._reports.add(report)
            report.add_done_callback(self._reports.discard)
            return
        lane.busy += 1
        running = Running(lease, lane, asked_at, alone=claimed.alone)
        self.running[lease.job_id] = running
        running.task = asyncio.create_task(self._run(running, claimed, envelope))

    def _lane_for(self, model: str) -> Lane:
        lanes = [lane for lane in self.lanes if model in lane.models]
        if not lanes:
            raise BackendError(f"no backend of {self.config.node} serves {model} any more", retryable=True)
        return max(lanes, key=lambda lane: (model in lane.loaded, lane.free))

    async def _run(self, running: Running, claimed: Claimed, envelope: Envelope) -> None:
        spans = Spans(claimed, envelope, node=self.config.node, worker=self.worker)
        runner = Runner(
            self.broker,
            claimed,
            envelope,
            running.lane,
            node=self.config.node,
            worker=self.worker,
            timeouts=self.config.timeouts,
            on_lost=lambda: self.call_off(running.lease.job_id, running.lease.fence),
            figures=self.figures,
            spans=spans,
        )
        running.runner = runner
        try:
            answered = await runner.run()
        except asyncio.CancelledError as called_off:
            spans.end(called_off)
            running.lane.busy -= 1
            if not running.called_off:
                raise
        except SollolError as error:
            spans.end(error)
            running.lane.busy -= 1
            running.lane.failed(envelope.model, error)
            await self._report(running.lease, error, claimed, envelope, running.lane)
        except Exception as error:
            log.exception("job %s: a mistake of ours", running.lease.job_id)
            spans.end(error)
            running.lane.busy -= 1
            broken = BackendError(f"the worker failed ({type(error).__name__})", retryable=True)
            await self._report(running.lease, broken, claimed, envelope)
        else:
            run_ms = (time.monotonic() - running.asked_at) * 1000
            running.lane.learn(
                answered.model,
                answered.measured,
                predicted_ms=0.0 if answered.is_rest or answered.part else claimed.predicted_ms,
                actual_ms=run_ms,
                cached_tokens=running.lane.holds(claimed.affinity),
            )
            running.lane.busy -= 1
            running.lane.remember(claimed.affinity, max(0, answered.prompt_tokens + answered.output_tokens))
            running.delivering = True
            used = Used(answered.prompt_tokens, answered.output_tokens, -1.0 if answered.is_rest else run_ms)
            if await self._finish(running.lease, answered.data, used):
                self._count(claimed, running, answered, run_ms)
                tell_of_answer(self.live, claimed, envelope, used, run_ms)
        finally:
            spans.end()
            # Not before: until Redis has the answer, the heartbeat must keep the lease.
            if self.running.get(running.lease.job_id) is running:
                del self.running[running.lease.job_id]
            if not running.delivering:  # a delivery claims by itself
                self.wake()

    def _count(self, claimed: Claimed, running: Running, answered: Answered, run_ms: float) -> None:
        waited, first_at = claimed.waited_ms, answered.first_at
        # What was taken over had begun before.
        begins_here = not answered.is_rest
        self.figures.answered(
            answered.model,
            prompt_tokens=answered.prompt_tokens,
            more_tokens=answered.untold_tokens,
            wait_ms=waited,
            ttft_ms=waited + _ms(running.asked_at, first_at) if first_at and begins_here else None,
            run_ms=run_ms,
            latency_ms=waited + _ms(running.asked_at, time.monotonic()),
        )

    async def _finish(self, lease: Lease, answer: bytes, used: Used) -> bool:
        """Deliver an answer and claim the next jobs; whether it was taken."""
        claims_too = not self._claiming and not self._stopping
        self._missed = (
            self._missed or self._claiming
        )  # our slot is free, but the claim under way does not know
        then = self._request() if claims_too else None
        self._claiming, asked_at = self._claiming or claims_too, time.monotonic()
        try:
            finished = await self.broker.finish(lease, answer, then, used=used)
        except SollolError as error:
            # The lease runs out by itself and the job is answered again: at least once, never silence.
            log.warning("job %s: its answer could not be delivered: %s", lease.job_id, error)
            return False
        finally:
            if claims_too:
                self._claimed()
        if not finished.taken:
            log.info("job %s: the answer came too late, the job is no longer ours", lease.job_id)
        if claims_too:
            await self._take(finished.claims, asked_at)
        return finished.taken

    async def _report(
        self,
        lease: Lease,
        error: SollolError,
        claimed: Claimed,
        envelope: Envelope | None = None,
        lane: Lane | None = None,
    ) -> None:
        if isinstance(error, DeadlineExceeded):
            await self._expire(lease)
            return
        retry = error.retryable if isinstance(error, BackendError) else not isinstance(error, InvalidJob)
        went_away = isinstance(error, BackendError) and is_backends_fault(error) and error.status is None
        if lane is not None and went_away and not isinstance(error, BackendTimeout):
            lane.close_for_now(str(error))  # ask it again before it gets the next job
        try:
            word = await self.broker.fail(
                lease,
                pack_error(error),
                retry=retry,
                only_elsewhere=isinstance(error, BackendError) and error.status == 400,
                most_errors=self.config.most_errors,
                backoff_ms=round(random.uniform(_BACKOFF_MS, 2 * _BACKOFF_MS)),
            )
        except SollolError as unreachable:
            log.warning("job %s: its failure could not be reported: %s", lease.job_id, unreachable)
        else:
            if envelope is not None and word != "stale":
                self.figures.failed(envelope.model)
            tell_of_failure(self.live, claimed, envelope, error, word)
        if lane is not None and lane.down_because:
            await self._advertise()

    async def _expire(self, lease: Lease) -> None:
        """End a job whose deadline has passed, as the reapers would a moment later."""
        try:
            await self.broker.reap(most_crashes=self.config.most_crashes)
        except SollolError as error:
            log.warning("job %s: it could not be ended at its deadline: %s", lease.job_id, error)

    async def _hand_back(self, running: Running) -> None:
        if running.runner is not None and not running.called_off:
            await running.runner.keep_what_was_said()
        self.call_off(running.lease.job_id)
        if running.task is not None:
            await _ended(running.task)
        await self._release(running.lease)

    async def _release(self, lease: Lease) -> None:
        with contextlib.suppress(SollolError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self.broker.release(lease)

    async def _advertise(self) -> bool:
        """Whether the fabric has heard it."""
        try:
            await self.advertise()
        except SollolError as error:
            log.warning("advert: %s", error)
            return False
        return True


def _ms(start: float, end: float) -> float:
    return (end - start) * 1000


async def _ended(task: asyncio.Task[None]) -> None:
    """Wait for a task's end, but not for ever."""
    await asyncio.wait({task}, timeout=_LAST_WORD_SECONDS)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
