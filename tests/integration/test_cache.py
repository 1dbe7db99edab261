"""Equal requests share one answer: in one process, between processes, while it is made and afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
import redis.asyncio

from fabric import CHAT_MODEL, EMBED_MODEL, Town, let_tokens_flow, town, worker
from sollol import AsyncClient, Client
from sollol_broker.errors import BackendError, DeadlineExceeded, JobCancelled, JobDead, JobLost
from sollol_broker.keys import Keys
from sollol_broker.words import JobState
from sollol_client import AsyncJob
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"
COLD: dict[str, Any] = {"chat": "hi", "model": "tiny", "options": {"temperature": 0}}


@pytest.fixture
async def ollama(redis_url: str) -> AsyncIterator[OllamaDouble]:
    """A double with two slots, and a worker in front of it."""
    async with (
        OllamaDouble([CHAT_MODEL, EMBED_MODEL], parallel=2) as double,
        worker(redis_url, double.url, slots=2, most_errors=1),
    ):
        yield double
        double.tokens_may_flow.set()


@pytest.fixture
async def first(redis_url: str) -> AsyncIterator[AsyncClient]:
    """A client of the app "tests"."""
    async with AsyncClient(redis_url, app="tests") as client:
        yield client


@pytest.fixture
async def second(redis_url: str) -> AsyncIterator[AsyncClient]:
    """Another one, as another process would have it."""
    async with AsyncClient(redis_url, app="tests") as client:
        yield client


def asked(ollama: OllamaDouble) -> int:
    """How many requests the backend has got."""
    return len(ollama.seen.requests)


async def held(ollama: OllamaDouble, client: AsyncClient, **more: Any) -> AsyncJob:
    """A job that runs and gets no token until they may flow."""
    ollama.tokens_may_flow.clear()
    job = client.submit(**{**COLD, **more})
    await wait_until(lambda: ollama.seen.generating == 1, timeout=5, what="the job to run")
    return job


# --- answers that are there


async def test_the_second_question_is_answered_at_home(ollama: OllamaDouble, first: AsyncClient) -> None:
    made, found = first.submit(**COLD), None
    answer = await made
    found = first.submit(**COLD)
    assert found.done()
    again = await found
    assert (answer.routing.cached, again.routing.cached) == ("", "local")
    assert again == answer
    assert again is not answer
    assert again.routing.node == "n1"
    assert found.id == made.id
    assert found.state is JobState.DONE
    assert asked(ollama) == 1
    stats = first.get_cache_stats()
    assert (stats["hits"], stats["misses"], stats["hit_rate"], stats["size"]) == (1, 1, 0.5, 1)


async def test_a_caller_who_changes_his_answer_changes_nobody_elses(
    ollama: OllamaDouble, first: AsyncClient
) -> None:
    answer = await first.submit(**COLD)
    answer["message"]["content"] = "mine"
    again = await first.submit(**COLD)
    again["message"]["content"] = "mine, too"
    assert (await first.submit(**COLD)).text == FOX


async def test_another_process_finds_the_answer_in_redis(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = first.submit(embed=["a", "b"], model="tiny-embed")
    answer = await made
    found = second.submit(embed=["a", "b"], model="tiny-embed")
    shared = await found
    assert shared == answer
    assert shared.embeddings == answer.embeddings
    assert shared.routing.cached == "shared"
    assert found.id == made.id
    assert (await second.submit(embed=["a", "b"], model="tiny-embed")).routing.cached == "local"
    assert asked(ollama) == 1
    stats = second.get_cache_stats()
    assert (stats["hits"], stats["shared"], stats["misses"]) == (1, 1, 0)


async def test_a_large_answer_is_fetched_from_redis_each_time(
    ollama: OllamaDouble, first: AsyncClient
) -> None:
    texts = [str(number) for number in range(20_000)]
    answers = [await first.submit(embed=texts, model="tiny-embed") for _ in range(2)]
    assert [each.routing.cached for each in answers] == ["", "shared"]
    assert answers[0] == answers[1]
    assert first.get_cache_stats()["size"] == 0
    assert asked(ollama) == 1


async def test_a_stream_gets_a_stored_text_in_one_piece(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    assert len([piece async for piece in first.submit(**COLD, stream=True)]) > 1
    for client in (first, second):
        assert [piece async for piece in client.submit(**COLD, stream=True)] == [FOX]
    assert asked(ollama) == 1


async def test_nothing_is_shared_unasked_above_temperature_0(
    ollama: OllamaDouble, first: AsyncClient
) -> None:
    others: list[dict[str, Any]] = [{"options": {}}, {"cache": False}, {"options": {"temperature": 0.7}}]
    for more in others:
        assert [(await first.submit(**{**COLD, **more})).routing.cached for _ in range(2)] == ["", ""]
    assert asked(ollama) == 6
    warm = {**COLD, "options": {}, "cache": True}
    assert [(await first.submit(**warm)).routing.cached for _ in range(2)] == ["", "local"]
    assert asked(ollama) == 7


async def test_a_client_without_a_cache(redis_url: str, ollama: OllamaDouble) -> None:
    async with AsyncClient(redis_url, cache=False) as client:
        assert [(await client.submit(**COLD)).routing.cached for _ in range(2)] == ["", ""]
        assert [(await client.submit(**COLD, cache=True)).routing.cached for _ in range(2)] == ["", "local"]
        assert not client.get_cache_stats()["enabled"]


async def test_applications_share_where_both_say_so(redis_url: str, ollama: OllamaDouble) -> None:
    async with AsyncClient(redis_url, app="a") as a, AsyncClient(redis_url, app="b") as b:
        assert [(await client.submit(**COLD)).routing.cached for client in (a, b)] == ["", ""]
    async with (
        AsyncClient(redis_url, app="a", cache_scope="shared") as a,
        AsyncClient(redis_url, app="b", cache_scope="shared") as b,
    ):
        assert [(await client.submit(**COLD)).routing.cached for client in (a, b)] == ["", "shared"]


# --- answers that are being made


async def test_equal_questions_in_flight_run_once(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    others = [client.submit(**COLD) for client in (first, second) for _ in range(5)]
    await wait_until(lambda: {job.id for job in others} == {made.id}, timeout=5, what="them to share")
    ollama.tokens_may_flow.set()
    answers = await asyncio.gather(made, *others)
    assert [answer.text for answer in answers] == [FOX] * 11
    assert [answer.routing.cached for answer in answers] == ["", *["shared"] * 10]
    assert asked(ollama) == 1
    stats = first.get_cache_stats()
    assert (stats["shared"], stats["misses"]) == (5, 1)


async def test_a_stream_joins_another_in_its_midst(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first, stream=True)
    await let_tokens_flow(ollama, 4)
    joined = second.submit(**COLD, stream=True)
    reader = aiter(joined)
    early = await anext(reader)
    assert not joined.done()
    ollama.tokens_may_flow.set()
    late = [piece async for piece in reader]
    assert late
    assert "".join([early, *late]) == (await made).text == FOX
    assert asked(ollama) == 1


async def test_who_shares_and_cancels_only_stops_waiting(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    leaves, stays = second.submit(**COLD), second.submit(**COLD)
    await wait_until(lambda: leaves.id == stays.id == made.id, timeout=5, what="them to share")
    assert await leaves.cancel()
    assert leaves.cancelled()
    with pytest.raises(JobCancelled):
        await leaves
    assert not await leaves.cancel()
    view = await second.job(made.id)
    assert view is not None
    assert view.state is JobState.RUNNING
    ollama.tokens_may_flow.set()
    assert (await stays).text == (await made).text == FOX
    assert (asked(ollama), ollama.seen.abandoned) == (1, 0)


async def test_a_cancel_that_comes_before_it_shares(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    leaves = second.submit(**COLD)
    assert await leaves.cancel()
    with pytest.raises(JobCancelled):
        await leaves
    ollama.tokens_may_flow.set()
    assert (await made).text == FOX


async def test_a_cancel_by_id_spares_other_processes(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    leaves = second.submit(**COLD)
    await wait_until(lambda: leaves.id == made.id, timeout=5, what="it to share")
    assert await second.cancel(leaves.id)
    with pytest.raises(JobCancelled):
        await leaves
    ollama.tokens_may_flow.set()
    assert (await made).text == FOX


async def test_when_the_first_is_cancelled_the_others_run_themselves(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    others = [first.submit(**COLD), second.submit(**COLD, stream=True)]
    own = [job.id for job in others]
    await wait_until(lambda: {job.id for job in others} == {made.id}, timeout=5, what="them to share")
    assert await made.cancel()
    await wait_until(lambda: [job.id for job in others] == own, timeout=5, what="them to go alone")
    ollama.tokens_may_flow.set()
    answers = await asyncio.gather(*others)
    assert [(answer.text, answer.routing.cached) for answer in answers] == [(FOX, "")] * 2
    assert "".join([piece async for piece in others[1]]) == FOX
    assert asked(ollama) == 3
    for job in others:
        view = await first.job(job.id)
        assert view is not None
        assert view.state is JobState.DONE


async def test_when_the_first_fails_the_other_tries_once_more(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    other = second.submit(**COLD)
    await wait_until(lambda: other.id == made.id, timeout=5, what="it to share")
    ollama.faults.die_after_tokens = 1
    ollama.tokens_may_flow.set()
    with pytest.raises(BackendError):
        await made
    with pytest.raises(BackendError):
        await other
    assert other.id != made.id
    ollama.faults.die_after_tokens = None
    assert (await second.submit(**COLD)).routing.cached == ""


async def test_what_killed_workers_is_not_tried_again_by_those_who_share(
    redis_url: str, ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    other = second.submit(**COLD)
    await wait_until(lambda: other.id == made.id, timeout=5, what="it to share")
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        await raw.xadd(Keys().events(made.id), {"t": "end", "x": "dead", "f": "3", "d": ""})
    with pytest.raises(JobDead):
        await other
    assert asked(ollama) == 1


async def test_who_shares_keeps_his_own_deadline(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    made = await held(ollama, first)
    hasty = second.submit(**COLD, deadline=0.3)
    await wait_until(lambda: hasty.id == made.id, timeout=5, what="it to share")
    with pytest.raises(DeadlineExceeded):
        await hasty
    assert hasty.state is JobState.EXPIRED
    ollama.tokens_may_flow.set()
    assert (await made).text == FOX


async def test_a_shared_job_that_redis_lost_is_run_again(
    redis_url: str, ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    answer = await first.submit(**COLD)
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        (pointer,) = [key async for key in raw.scan_iter("{sollol}:cache:*")]
        job_id = await raw.get(pointer)
        assert isinstance(job_id, bytes)
        await raw.delete(Keys().events(job_id.decode()))
    again = await second.submit(**COLD)
    assert (again.text, again.routing.cached) == (answer.text, "")
    assert asked(ollama) == 2


# --- dropping answers


async def test_a_models_answers_are_dropped_everywhere(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    embed: dict[str, Any] = {"embed": "a", "model": "tiny-embed"}
    for client in (first, second):
        await client.submit(**COLD)
        await client.submit(**embed)
    assert await first.invalidate_cache_by_model("Tiny:latest") == 1
    assert (await first.submit(**COLD)).routing.cached == ""
    assert (await first.submit(**embed)).routing.cached == "local"
    assert (await second.submit(**COLD)).routing.cached == "local", "it has not heard of it yet"
    await second.session.lookout.attend()
    assert (await second.submit(**COLD)).routing.cached == "shared"
    assert (await second.submit(**embed)).routing.cached == "local"
    assert await first.invalidate_cache_by_model("nosuchmodel") == 0
    assert asked(ollama) == 3


async def test_processes_that_know_nothing_of_it_find_nothing_in_redis(
    redis_url: str, ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    await first.submit(**COLD)
    await first.invalidate_cache_by_model("tiny")
    assert (await second.submit(**COLD)).routing.cached == ""
    async with AsyncClient(redis_url, app="tests") as third:
        assert (await third.submit(**COLD)).routing.cached == ""


async def test_who_runs_while_answers_are_dropped_answers_nobody_later(
    ollama: OllamaDouble, first: AsyncClient
) -> None:
    made = await held(ollama, first)
    assert await first.invalidate_cache_by_model("tiny") == 0
    after = first.submit(**COLD)
    ollama.tokens_may_flow.set()
    assert (await made).text == FOX
    assert (await after).routing.cached == ""
    assert first.get_cache_stats()["size"] == 1


async def test_clear_drops_the_answers_of_the_app_alone(redis_url: str, ollama: OllamaDouble) -> None:
    async with (
        AsyncClient(redis_url, app="a") as a,
        AsyncClient(redis_url, app="a") as same,
        AsyncClient(redis_url, app="b") as b,
    ):
        for client in (a, same, b):
            await client.submit(**COLD)
        await a.clear_cache()
        assert a.get_cache_stats()["size"] == 0
        await same.session.lookout.attend()
        cached = [(await client.submit(**COLD)).routing.cached for client in (a, same, b)]
    assert cached == ["", "shared", "local"]


async def test_pointers_run_out_with_the_answer(
    redis_url: str, ollama: OllamaDouble, first: AsyncClient
) -> None:
    await first.submit(**COLD, result_ttl=60)
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        (pointer,) = [key async for key in raw.scan_iter("{sollol}:cache:*")]
        for key in (pointer, Keys().cached("tiny")):
            assert 0 < await raw.pttl(key) <= 60_000


async def test_an_attached_client_gets_the_shared_job(
    ollama: OllamaDouble, first: AsyncClient, second: AsyncClient
) -> None:
    await first.submit(**COLD)
    found = second.submit(**COLD)
    sent = found.id
    assert (await found).routing.cached == "shared"
    assert (await first.attach(found.id)).text == FOX
    with pytest.raises(JobLost):
        await first.attach(sent)


# --- threads


@pytest.fixture
def fabric(redis_url: str) -> Iterator[Town]:
    with town(redis_url) as built:
        yield built


def test_threads_share_as_well(fabric: Town) -> None:
    with Client(fabric.url, app="tests") as client, Client(fabric.url, app="tests") as other:
        assert client.submit(**COLD).result(timeout=30).routing.cached == ""
        found = client.submit(**COLD)
        assert found.done()
        assert found.result().routing.cached == "local"
        assert list(found) == [FOX]
        assert found.state is JobState.DONE
        assert not found.cancel()
        assert other.submit(**COLD).result(timeout=30).routing.cached == "shared"
        assert other.invalidate_cache_by_model("tiny") == 1
        assert other.submit(**COLD).result(timeout=30).routing.cached == ""
        client.clear_cache()
        assert client.get_cache_stats()["size"] == 0
        exported = other.export_cache()
        assert client.import_cache(exported) == 1
        assert client.submit(**COLD).result(timeout=30).routing.cached == "local"
        assert fabric.asked == 2


def test_a_thread_that_shares_and_cancels_only_stops_waiting(fabric: Town) -> None:
    with Client(fabric.url, app="tests") as client, Client(fabric.url, app="tests") as other:
        fabric.hold()
        made = client.submit(**COLD)
        leaves, stays = other.submit(**COLD), other.submit(**COLD)
        asyncio.run(wait_until(lambda: leaves.id == stays.id == made.id, timeout=5, what="them to share"))
        assert leaves.cancel()
        assert leaves.state is JobState.CANCELLED
        with pytest.raises(CancelledError):
            next(iter(leaves))
        fabric.go()
        assert stays.result(timeout=30).text == made.result(timeout=30).text == FOX
        assert fabric.asked == 1
