"""A stream that is read on from any entry, by any process; and what is no longer there says so."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from fabric import CHAT_MODEL, let_tokens_flow, script, town, worker
from sollol import AsyncClient, Client, Delta, InvalidJob, JobLost, StreamGap
from sollol_broker.keys import Keys
from sollol_client import AsyncJob
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"

# A reader in another process: prints the id of each piece and its text, and can be killed between two of them.
_READER = """
import sys
from sollol import Client
with Client(sys.argv[1]) as client:
    for piece in client.submit(chat="hi", model="tiny", stream=True, idempotency_key="story"):
        print(piece.entry_id, piece, sep="|", flush=True)
"""


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaDouble]:
    async with OllamaDouble([CHAT_MODEL], parallel=2) as double:
        yield double
        double.tokens_may_flow.set()


async def test_500_cuts_of_a_stream_each_give_the_text_byte_for_byte(redis_url: str) -> None:
    chance = random.Random(13)
    backend = "echo://?slots=2&tokens=60&token_ms=3&models=echo"
    async with worker(redis_url, backend, lease_seconds=10), AsyncClient(redis_url) as client:
        job = client.submit(chat="hi", model="echo", stream=True)
        pieces = [piece async for piece in job]
        assert len(pieces) > 10
        whole = (await job).text.encode()
        for _ in range(500):
            cut = chance.randrange(len(pieces))
            rest = await _read(client.attach(job.id, after=pieces[cut].entry_id))
            before = "".join(pieces[: cut + 1])
            assert (before + "".join(rest)).encode() == whole
            assert [piece.entry_id for piece in rest] == [piece.entry_id for piece in pieces[cut + 1 :]]


async def test_a_running_stream_is_read_on_by_another_client_from_where_the_first_was(
    redis_url: str, ollama: OllamaDouble
) -> None:
    ollama.tokens_may_flow.clear()
    async with worker(redis_url, ollama.url, slots=2), AsyncClient(redis_url) as client:
        async with AsyncClient(redis_url) as first:
            job = first.submit(chat="hi", model="tiny", stream=True)
            reader = aiter(job)
            await let_tokens_flow(ollama, 3)
            read = [await anext(reader) for _ in range(2)]
            last = read[-1].entry_id
            # In its own process, too, where the inbox brings the entries.
            same = first.attach(job.id, after=last)
            same_reader = aiter(same)
            third = await anext(same_reader)
            assert "".join([*read, third]) == "the quick brown"
        other = client.attach(job.id, after=last)
        ollama.tokens_may_flow.set()
        assert "".join([*read, *await _read(other)]) == FOX == (await other).text


async def test_an_end_that_was_read_is_not_shown_again(redis_url: str, ollama: OllamaDouble) -> None:
    async with worker(redis_url, ollama.url), AsyncClient(redis_url) as client:
        whole = await _read(job := client.submit(chat="hi", model="tiny"))
        assert whole == [FOX]
        again = client.attach(job.id, after=whole[0].entry_id)
        assert await _read(again) == []
        assert (await again).text == FOX
        assert await _read(client.attach(job.id)) == [FOX]


def test_a_reader_that_is_killed_is_followed_by_a_thread_elsewhere(redis_url: str) -> None:
    with town(redis_url) as place:
        place.hold()
        with script(_READER, redis_url) as process:
            assert process.stdout is not None
            place.loop.run(wait_until(lambda: place.asked == 1, timeout=20, what="the job to run"))
            place.loop.run(let_tokens_flow(place.ollama, 4))
            lines = [process.stdout.readline().rstrip("\n").split("|") for _ in range(3)]
            process.kill()
        with Client(redis_url) as client:
            (view,) = client.jobs()
            rest = client.attach(view.id, after=lines[-1][0])
            place.go()
            assert "".join([*(text for _, text in lines), *rest]) == FOX


async def test_what_was_trimmed_comes_whole_or_as_a_gap(redis_url: str, ollama: OllamaDouble) -> None:
    ollama.tokens_may_flow.clear()
    async with (
        worker(redis_url, ollama.url),
        AsyncClient(redis_url) as client,
        AsyncClient(redis_url) as other,
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):
        job = client.submit(chat="hi", model="tiny", stream=True)
        reader = aiter(job)
        await let_tokens_flow(ollama, 4)
        pieces = [await anext(reader) for _ in range(3)]
        # A later piece is as far as the stream goes back by now.
        await raw.xtrim(Keys().events(job.id), minid=pieces[-1].entry_id, approximate=False)
        with pytest.raises(StreamGap, match="has the answer whole"):  # at once, though the job runs
            await _read(resumed := other.attach(job.id, after=pieces[0].entry_id))
        late = other.attach(job.id)
        ollama.tokens_may_flow.set()
        assert (await resumed).text == FOX
        assert "".join(await _read(late)) == FOX, "what is gone from the stream comes with the answer"
        assert "".join([*pieces, *[piece async for piece in reader]]) == FOX


async def test_after_its_time_a_result_is_lost_and_says_so(redis_url: str, ollama: OllamaDouble) -> None:
    async with worker(redis_url, ollama.url), AsyncClient(redis_url) as client:
        job = client.submit(chat="hi", model="tiny", result_ttl=1)
        await job
        async with redis.asyncio.Redis.from_url(redis_url) as raw:

            async def is_gone() -> bool:
                return not await raw.exists(Keys().job(job.id), Keys().events(job.id))

            await wait_until(is_gone, timeout=5, what="the result to expire")
        for late in (
            client.attach(job.id),
            client.attach(job.id, after="1-0"),
            client.attach(uuid.uuid4().hex),
        ):
            with pytest.raises(JobLost, match="its result has expired, or the id is wrong"):
                await _read(late)
        with pytest.raises(InvalidJob):
            client.attach(job.id, after="yesterday")


async def _read(job: AsyncJob) -> list[Delta]:
    return [piece async for piece in job]
