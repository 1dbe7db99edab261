"""The functions of batches: what may become a job, and that each item ends once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fabric_kit import Fabric, fabric_at
from mutants import mutant
from sollol_broker.batch_plan import BatchPlan, chunk_submission, pack_item
from sollol_broker.batch_record import BatchView, Chunk, EndedChunk
from sollol_broker.batch_store import BatchStore
from sollol_broker.broker import Lease
from sollol_broker.codec import pack
from sollol_broker.errors import InvalidJob, JobLost
from sollol_broker.library import Library
from sollol_broker.operations import Operations
from sollol_broker.registry import Registry
from sollol_broker.words import BatchState, JobKind, JobState

_PLAN = BatchPlan(JobKind.EMBED, "m", "tests")
_TEXTS = [f"text {i}" for i in range(10)]


class Town:
    """A batch of ten texts on a fabric, and what a driver, or several, would do with it."""

    def __init__(self, fabric: Fabric, batch_id: str = "b1") -> None:
        self.fabric = fabric
        self.store = BatchStore(fabric.broker)
        self.id = batch_id

    async def view(self) -> BatchView:
        """As it stands."""
        return (await self.store.drive(self.id)).view

    async def begin(self, count: int = 10, *, plan: BatchPlan = _PLAN) -> None:
        """With all its items."""
        assert await self.store.create(self.id, plan)
        await self.store.feed(await self.view(), 0, [pack_item(text) for text in _TEXTS[:count]], last=True)

    async def send(self, chunk: Chunk) -> str:
        """Send a chunk as a job, opened or not; the reply's words."""
        submission = chunk_submission(_PLAN, await self.view(), chunk, _TEXTS[chunk.start : chunk.end])
        reply = await self.fabric.broker.submit(submission)
        self.fabric.submitted.append(submission.job_id)
        return " ".join(each.decode() for each in reply if isinstance(each, bytes))

    async def claim(self) -> Lease:
        """Take the next job."""
        return (await self.fabric.claim_one()).lease

    async def answer(self) -> None:
        """Take the next job and answer it."""
        assert (await self.fabric.broker.finish(await self.claim(), b"answer")).taken

    async def refuse(self) -> None:
        """Take the next job and say that it cannot be answered."""
        lease = await self.claim()
        await self.fabric.broker.fail(lease, b"error", retry=False, most_errors=3, backoff_ms=1)

    async def ended(self) -> list[EndedChunk]:
        """In order of the items."""
        return await self.store.ended_from(self.id, 0, 100)


@asynccontextmanager
async def _town(url: str, functions: Library | None = None) -> AsyncIterator[Town]:
    async with fabric_at(url, functions=functions) as fabric:
        await fabric.worker()
        yield Town(fabric)


@pytest.fixture
async def town(redis_url: str) -> AsyncIterator[Town]:
    async with _town(redis_url) as town:
        yield town


async def test_a_batch_runs_from_its_first_chunk_to_its_last_item(town: Town) -> None:
    await town.begin()
    assert (await town.view()).state is BatchState.PENDING
    chunks = [Chunk(0, 6), Chunk(6, 4)]
    assert await town.store.cut(town.id, chunks) == 2
    for chunk in chunks:
        assert (await town.send(chunk)).startswith("queued")
    assert (await town.store.drive(town.id)).open == tuple(chunks)
    await town.answer()
    view = await town.view()
    assert (view.state, view.completed, view.in_bytes) == (
        BatchState.RUNNING,
        6,
        4 * len(pack_item("text 0")),
    )
    await town.answer()
    view = await town.view()
    assert (view.state, view.completed, view.in_bytes) == (BatchState.COMPLETED, 10, 0)
    assert await town.store.due(100) == []
    assert await town.ended() == [EndedChunk(chunk, JobState.DONE, chunk) for chunk in chunks]
    assert await town.store.results(view, await town.ended()) == [b"answer", b"answer"]


async def test_chunks_do_not_push_other_jobs_out_of_the_list_of_those_that_ended(town: Town) -> None:
    fabric = town.fabric
    await fabric.submit("j1")
    await town.answer()
    await town.begin()
    for chunk in (Chunk(0, 6), Chunk(6, 4)):
        await town.store.cut(town.id, [chunk])
        await town.send(chunk)
        await town.answer()
    registry = Registry(fabric.broker)

    chunks = [each.id for each in await registry.jobs(2)]
    assert chunks == fabric.submitted[:0:-1]  # the newest first, while their records last
    assert await fabric.call("LRANGE", fabric.keys.ended, 0, -1) == [b"j1"]
    assert 0 < await fabric.call("PTTL", fabric.keys.ended_chunks) <= 30_000
    for each in chunks:
        await fabric.call("DEL", fabric.keys.job(each))
    assert [each.id for each in await registry.jobs(1)] == ["j1"]


async def test_what_is_sent_twice_is_there_once(town: Town) -> None:
    assert await town.store.create(town.id, _PLAN)
    assert not await town.store.create(town.id, _PLAN)
    with pytest.raises(InvalidJob, match="another model"):
        await town.store.create(town.id, BatchPlan(JobKind.EMBED, "m", "tests", payload={"dimensions": 8}))
    view, items = await town.view(), [pack_item(text) for text in _TEXTS]
    assert (await town.store.feed(view, 0, items[:4], last=False)).fed == 4
    assert (await town.store.feed(view, 2, items[2:6], last=False)).fed == 6
    assert (await town.store.feed(view, 8, items[8:], last=True)).fed == 6  # 6 and 7 are missing
    assert (await town.store.feed(view, 4, items[4:], last=True)).fed == 10
    assert not (await town.store.feed(view, 10, items, last=True)).takes_more
    assert await town.store.items(view, Chunk(0, 10)) == _TEXTS
    with pytest.raises(JobLost):
        await BatchStore(town.fabric.broker).drive("unknown")


async def test_one_drives_until_its_lease_is_over_or_left(town: Town) -> None:
    await town.begin()
    assert (await town.store.drive(town.id, "a", lease_ms=60_000)).drives
    assert not (await town.store.drive(town.id, "b", lease_ms=60_000)).drives
    assert await town.store.due(100) == []
    await town.store.drive(town.id, "b")  # leaves nothing that is not its own
    assert not (await town.store.drive(town.id, "b", lease_ms=60_000)).drives
    await town.store.drive(town.id, "a")
    assert await town.store.due(100) == [town.id]
    assert (await town.store.drive(town.id, "b", lease_ms=60_000)).drives


async def _two_drivers(town: Town) -> str:
    """A second driver that was asleep while the first one drove: it proposes other chunks of the same items."""
    await town.begin()
    assert await town.store.cut(town.id, [Chunk(0, 10)]) == 1
    assert await town.store.cut(town.id, [Chunk(0, 5), Chunk(5, 5)]) == 0
    await town.send(Chunk(0, 10))
    return await town.send(Chunk(0, 5))


async def test_two_drivers_do_no_harm(town: Town) -> None:
    assert await _two_drivers(town) == "known cancelled"
    await town.answer()
    assert (await town.view()).completed == 10
    assert await town.fabric.claim() == []


async def _late_sender(town: Town) -> str:
    """A driver that opened a chunk and sends it after the cancel."""
    await town.begin()
    await town.store.cut(town.id, [Chunk(0, 5), Chunk(5, 5)])
    await town.send(Chunk(0, 5))
    assert await town.store.halt(town.id, BatchState.CANCELLED) is BatchState.CANCELLED
    return await town.send(Chunk(5, 5))


async def test_nothing_starts_after_a_cancel(town: Town) -> None:
    assert await _late_sender(town) == "known cancelled"
    assert await town.fabric.claim() == []
    assert await town.store.cut(town.id, [Chunk(0, 5)]) == 0
    view = await town.view()
    assert (view.state, view.done, (await town.store.drive(town.id)).open) == (BatchState.CANCELLED, 0, ())


@pytest.mark.parametrize("scene", [_two_drivers, _late_sender])
async def test_without_its_guard_more_would_start(redis_url: str, scene) -> None:  # type: ignore[no-untyped-def]
    careless = mutant("if not is_wanted(F, id) then return {'known', 'cancelled'} end", "")
    async with _town(redis_url, careless) as town:
        assert (await scene(town)).startswith("queued")


async def _revived(town: Town) -> BatchView:
    """A chunk dies, is cut and answered in two; then an operator brings its first job back, and it is answered, too."""
    await town.begin(3)
    await town.store.cut(town.id, [Chunk(0, 2)])
    await town.send(Chunk(0, 2))
    lease = await town.claim()
    await town.fabric.expire_lease(lease.job_id)
    await town.fabric.reap(most_crashes=1)
    assert (await town.store.drive(town.id)).failed == (Chunk(0, 2),)
    assert await town.store.cut(town.id, [Chunk(0, 1)]) == 1
    await town.fabric.call(*town.fabric.broker.command("letters", "retry", pack([0] * 11), lease.job_id))
    for chunk in (Chunk(0, 1), Chunk(1, 1)):
        await town.send(chunk)
    for _ in range(3):
        await town.answer()
    return await town.view()


# A retry of such a job is refused; without that, it is the batch itself that takes no second end.
_RETRIES = ("and (h[1] == 'dead' or h[1] == 'failed') and not is_wanted(F, id) then", "and false then")


async def test_an_item_ends_once_even_where_its_first_job_comes_back_to_life(redis_url: str) -> None:
    async with _town(redis_url, mutant(*_RETRIES)) as town:
        view = await _revived(town)
        assert (view.state, view.completed, view.failed) == (BatchState.RUNNING, 2, 0)
        assert [each.chunk for each in await town.ended()] == [Chunk(0, 1), Chunk(1, 1)]


async def test_without_its_guard_an_item_would_end_twice(redis_url: str) -> None:
    guard = "if h[2] ~= tag or redis.call('HGET', open, start) ~= count then return end"
    async with _town(redis_url, mutant(guard, "", _RETRIES)) as town:
        assert (await _revived(town)).completed > 2


async def test_a_chunk_that_fails_is_cut_until_the_item_at_fault_is_alone(town: Town) -> None:
    await town.begin(4)
    await town.store.cut(town.id, [Chunk(0, 4)])
    await town.send(Chunk(0, 4))
    await town.refuse()
    assert (await town.store.drive(town.id)).failed == (Chunk(0, 4),)
    assert await town.store.cut(town.id, [Chunk(0, 2)]) == 1
    assert await town.store.cut(town.id, [Chunk(0, 2)]) == 0  # repeated
    assert (await town.store.drive(town.id)).open == (Chunk(0, 2), Chunk(2, 2))
    await town.send(Chunk(2, 2))
    await town.answer()
    await town.send(Chunk(0, 2))
    await town.refuse()
    await town.store.cut(town.id, [Chunk(0, 1)])
    await town.send(Chunk(0, 1))
    await town.refuse()
    assert await town.store.spoil(await town.view(), 1, InvalidJob("it cannot be sent"))
    assert not await town.store.spoil(await town.view(), 1, InvalidJob("it cannot be sent"))
    view = await town.view()
    assert (view.state, view.completed, view.failed) == (BatchState.COMPLETED, 2, 2)
    assert [(each.chunk.start, each.state.value) for each in await town.ended()] == [
        (0, "failed"),
        (1, "failed"),
        (2, "done"),
    ]


async def test_an_item_that_has_failed_does_not_run_again_for_nobody(town: Town) -> None:
    await town.begin(2)
    await town.store.cut(town.id, [Chunk(0, 1), Chunk(1, 1)])
    first, second = Chunk(0, 1), Chunk(1, 1)
    view, operations = await town.view(), Operations(town.fabric.broker)
    await town.send(first)
    lease = await town.claim()
    await town.fabric.broker.fail(lease, b"error", retry=True, most_errors=1, backoff_ms=1)
    assert [(each.chunk, each.state) for each in await town.ended()] == [(first, JobState.FAILED)]
    assert await operations.retry([view.job_id(first)]) == {view.job_id(first): "batch"}
    # While the batch runs, and when it is over.
    await town.send(second)
    await town.answer()
    assert (await town.view()).state is BatchState.COMPLETED
    assert await operations.retry([view.job_id(first)]) == {view.job_id(first): "batch"}
    assert [each.state for each in await town.ended()] == [JobState.FAILED, JobState.DONE]
    assert await town.fabric.claim() == []


async def test_what_a_slow_worker_leaves_of_a_chunk_is_a_chunk_again(town: Town) -> None:
    await town.begin()
    await town.store.cut(town.id, [Chunk(0, 10)])
    await town.send(Chunk(0, 10))
    lost = await town.claim()
    assert await town.fabric.broker.part(lost, 3)  # and dies; the next attempt's part is its own
    await town.fabric.expire_lease(lost.job_id)
    await town.fabric.reap()
    lease = await town.claim()
    assert not await town.fabric.broker.part(lost, 3)
    assert await town.fabric.broker.part(lease, 4)
    assert (await town.fabric.broker.finish(lease, b"answer")).taken
    assert (await town.store.drive(town.id)).open == (Chunk(4, 6),)
    assert await town.send(Chunk(4, 6)) == "queued"
    late = await town.claim()
    await town.fabric.broker.part(late, 2)
    await town.fabric.expire_lease(late.job_id)
    await town.fabric.reap()
    await town.answer()
    assert (await town.view()).state is BatchState.COMPLETED
    assert [bytes(each) for each in await town.ended()] == [b"0:4:done:10", b"4:6:done:6"]


async def test_what_is_read_is_dropped(town: Town) -> None:
    await town.begin()
    await town.store.cut(town.id, [Chunk(0, 10)])
    await town.send(Chunk(0, 10))
    await town.answer()
    ended = await town.ended()
    await town.store.shed(town.id, ended)
    await town.store.shed(town.id, ended)
    assert await town.ended() == []
    assert (await town.view()).out_bytes == 0


async def test_a_batch_that_is_forgotten_goes_and_one_at_work_stays(town: Town) -> None:
    await town.begin(plan=BatchPlan(JobKind.EMBED, "m", "tests", ttl_ms=60_000))
    key = town.fabric.keys.batch(town.id)
    await town.fabric.call("PEXPIRE", key, 30_000)
    await town.store.drive(town.id, "a", lease_ms=1000)
    assert await town.fabric.call("PTTL", key) <= 30_000
    await town.store.drive(town.id, "a", lease_ms=1000, keeps_alive=True)
    assert await town.fabric.call("PTTL", key) > 30_000
    await town.store.cut(town.id, [Chunk(0, 10)])
    await town.fabric.call("PEXPIRE", key, 30_000)
    await town.store.drive(town.id, "a", lease_ms=1000)  # its chunk is a job
    assert await town.fabric.call("PTTL", key) > 30_000
