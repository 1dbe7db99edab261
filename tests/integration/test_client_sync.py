"""The client for threads: futures, streams, one job per key, and what the fabric tells of itself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from fabric import Town, let_tokens_flow, town, until
from sollol import Client
from sollol_broker.errors import JobCancelled, NoNodeForModel
from sollol_broker.words import JobState

FOX = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
def fabric(redis_url: str) -> Iterator[Town]:
    with town(redis_url) as built:
        yield built


@pytest.fixture
def client(fabric: Town) -> Iterator[Client]:
    with Client(fabric.url, app="tests") as made:
        yield made


def test_chat_generate_and_embed(client: Client) -> None:
    chat = client.submit(chat="hi", model="tiny").result(timeout=30)
    generate = client.submit(generate="hi", model="Tiny:latest", options={"num_predict": 2}).result(
        timeout=10
    )
    embed = client.submit(embed=["a", "b", "a"], model="tiny-embed").result(timeout=30)
    assert chat.text == chat["message"]["content"] == FOX
    assert generate.text == generate["response"] == "the quick"
    assert (chat.routing.node, chat.routing.attempt, chat.routing.backend) == ("n1", 1, "ollama")
    first, second, third = embed.embeddings
    assert first == third != second
    assert sum(value * value for value in first) == pytest.approx(1.0)


def test_jobs_are_futures_of_the_standard_library(client: Client) -> None:
    jobs = [client.submit(chat=str(number), model="tiny") for number in range(8)]
    done, waiting = concurrent.futures.wait(jobs, timeout=10)
    assert (done, waiting) == (set(jobs), set())
    more = [client.submit(generate=str(number), model="tiny") for number in range(8)]
    assert {job.result().text for job in concurrent.futures.as_completed(more, timeout=10)} == {FOX}
    called = threading.Event()
    client.submit(chat="hi", model="tiny").add_done_callback(lambda job: called.set())
    assert called.wait(10)

    async def wrapped() -> str:
        return (await asyncio.wrap_future(client.submit(chat="hi", model="tiny"))).text

    assert asyncio.run(wrapped()) == FOX


def test_a_callback_that_waits_for_a_job_is_told_off_instead_of_hanging(client: Client) -> None:
    told: concurrent.futures.Future[str] = concurrent.futures.Future()

    def waits(job: object) -> None:
        try:
            client.nodes()
        except RuntimeError as error:
            told.set_result(str(error))

    client.submit(chat="hi", model="tiny").add_done_callback(waits)
    assert "must not wait" in told.result(timeout=30)


def test_a_result_that_is_not_there_yet_comes_later(fabric: Town, client: Client) -> None:
    fabric.hold()
    job = client.submit(chat="hi", model="tiny")
    with pytest.raises(TimeoutError):
        job.result(timeout=0.05)
    assert not job.done()
    fabric.go()
    assert job.result(timeout=30).text == FOX
    assert job.state is JobState.DONE


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_cancel(fabric: Town, client: Client, when: str) -> None:
    fabric.hold()
    others = [client.submit(chat="hi", model="tiny") for _ in range(4 if when == "waiting" else 0)]
    until(lambda: fabric.asked == len(others), "the slots to be full")
    job = client.submit(chat="hi", model="tiny")
    until(
        lambda: job.state is (JobState.QUEUED if when == "waiting" else JobState.RUNNING), f"it to be {when}"
    )
    if when == "running":
        until(lambda: fabric.asked == 1, "the backend to be asked")
    assert job.cancel()
    assert job.cancelled()
    assert job.state is JobState.CANCELLED
    with pytest.raises(concurrent.futures.CancelledError):
        job.result()
    with pytest.raises(concurrent.futures.CancelledError):
        list(job)
    until(lambda: _state(client, job.id) is JobState.CANCELLED, "Redis to know")
    if when == "running":
        until(lambda: fabric.ollama.seen.generating == 0, "the backend to be free")
        assert fabric.ollama.seen.abandoned == 1
    fabric.go()
    assert [other.result(timeout=30).text for other in others] == [FOX] * len(others)
    assert fabric.asked == max(1, len(others))
    assert client.cancel(job.id), "a cancel is safe to repeat"
    assert not client.cancel(client.submit(chat="hi", model="gone").id)


def test_a_job_cancelled_elsewhere_ends_with_an_error_here(fabric: Town, client: Client) -> None:
    fabric.hold()
    job = client.submit(chat="hi", model="tiny", stream=True)
    with Client(fabric.url) as other:
        assert other.cancel(job.id)
    with pytest.raises(JobCancelled, match=job.id):
        job.result(timeout=30)
    assert not job.cancel()


def test_pieces_come_as_they_are_made_and_add_up_to_the_answer(fabric: Town, client: Client) -> None:
    job = client.submit(chat="hi", model="tiny", stream=True)
    pieces = list(job)
    assert "".join(pieces) == job.result().text == FOX
    assert len(pieces) > 1
    assert "".join(client.submit(generate="hi", model="tiny")) == FOX  # unstreamed: all in one
    fabric.hold()
    held = client.submit(chat="hi", model="tiny", stream=True)
    until(lambda: fabric.ollama.seen.generating == 1, "it to run")
    reader = iter(held)
    fabric.loop.run(let_tokens_flow(fabric.ollama, fabric.ollama.seen.tokens + 1))
    assert next(reader) == "the", "the first piece had to wait for the second"
    fabric.go()
    assert "".join(reader) == FOX.removeprefix("the")


def test_position_in_line(fabric: Town, client: Client) -> None:
    fabric.hold()
    running = [client.submit(chat="hi", model="tiny") for _ in range(4)]
    until(lambda: fabric.asked == 4, "the slots to be full")
    waiting = [client.submit(chat="hi", model="tiny") for _ in range(3)]
    until(lambda: waiting[-1].position() == 2, "all to stand in line")
    assert [job.position() for job in [*running, *waiting]] == [None] * 4 + [0, 1, 2]
    assert [job.state for job in (running[0], waiting[0])] == [JobState.RUNNING, JobState.QUEUED]
    fabric.go()
    concurrent.futures.wait([*running, *waiting], timeout=10)
    assert waiting[0].position() is None


def test_the_same_idempotency_key_is_the_same_job_and_runs_once(fabric: Town, client: Client) -> None:
    fabric.hold()
    jobs = [client.submit(chat="hi", model="tiny", idempotency_key="once") for _ in range(3)]
    with Client(fabric.url, app="tests") as same, Client(fabric.url, app="else") as other:
        jobs.append(same.submit(chat="hi", model="tiny", idempotency_key="once"))
        assert {job.id for job in jobs} == {jobs[0].id}
        assert other.submit(chat="hi", model="tiny", idempotency_key="once").id != jobs[0].id
        fabric.go()
        assert [job.result(timeout=30).text for job in jobs] == [FOX] * 4
        late = client.submit(chat="hi", model="tiny", idempotency_key="once")
        assert late.result(timeout=30).text == FOX
    until(lambda: fabric.asked == 2, "the other application's job")
    until(lambda: client.stats()["jobs"]["done"] == 2, "both to be done")


def test_a_thousand_jobs_share_one_blocking_read(fabric: Town, client: Client) -> None:
    fabric.hold()
    jobs = [client.submit(chat=str(number), model="tiny", stream=number % 2 == 0) for number in range(1000)]
    with redis.Redis.from_url(fabric.url) as raw:
        until(lambda: client.stats()["total_requests"] == 1000, "all to be submitted")
        ours = [each for each in raw.client_list() if each["name"].startswith("sollol-client")]
        assert len(ours) == 2
        assert sum(1 for each in ours if each["cmd"] == "xread" and "b" in each["flags"]) == 1
    assert threading.active_count() < 20
    fabric.go()
    assert {job.result(timeout=30).text for job in jobs} == {FOX}


def test_what_the_fabric_tells_of_itself(fabric: Town, client: Client) -> None:
    fabric.hold()
    jobs = [client.submit(chat="hi", model="tiny", priority=7) for _ in range(5)]
    until(lambda: fabric.asked == 4, "the slots to be full")
    (node,) = client.nodes()
    assert (node.name, [each.id for each in node.workers]) == ("n1", [fabric.agent.worker])
    assert node.hardware["ram_total_mib"] > 0
    queues = {queue.model: queue for queue in client.queues()}
    assert (queues["tiny"].waiting, queues["tiny"].running, queues["tiny"].workers) == (1, 4, 1)
    models = {model.name: model for model in client.models()}
    assert models["tiny"].kinds == ("chat", "generate")
    assert models["tiny-embed"].kinds == ("embed",)
    assert models["tiny"].nodes == ("n1",)
    views = client.jobs()
    assert {view.id for view in views} == {job.id for job in jobs}
    assert [view.state for view in views] == [JobState.RUNNING] * 4 + [JobState.QUEUED]
    assert {(view.app, view.model, view.priority) for view in views} == {("tests", "tiny", 7)}
    fabric.go()
    concurrent.futures.wait(jobs, timeout=10)
    stats = client.stats()
    assert (stats["total_requests"], stats["jobs"]["done"], stats["success_rate"]) == (5, 5, 1.0)
    assert stats["hosts"]["n1"]["requests"] == 5


def test_a_model_that_nobody_has_is_refused_at_once(client: Client) -> None:
    began_at = time.monotonic()
    with pytest.raises(NoNodeForModel, match="no node serves gone") as refused:
        client.submit(chat="hi", model="gone").result(timeout=30)
    assert time.monotonic() - began_at < 15
    assert refused.value.reasons == {"n1": "it does not have the model; it has tiny, tiny-embed"}
    with pytest.raises(NoNodeForModel, match="does not fit"):
        client.submit(chat="hi", model="tiny", requires={"labels": ["moon"]}).result(timeout=30)


def _state(client: Client, job_id: str) -> JobState | None:
    view = client.job(job_id)
    return view.state if view is not None else None
