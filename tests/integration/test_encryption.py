"""With payload keys nothing that was said lies in Redis; without them it does, so the search is a good one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis

from fabric import worker
from fabric_kit import fabric_at
from gateway_kit import gateway, run_batches
from sollol import AsyncClient
from sollol_broker.codec import pack
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import InvalidJob, KeyMissing, SollolError
from sollol_broker.keys import Keys
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from waiting import wait_until

PROMPT, ANSWER, PICTURE = "xylophone-canary", "marzipan-canary sings all day", b"\x89PNG canary-picture " * 20
CANARIES = (b"xylophone-canary", b"marzipan-canary", b"canary-picture")
CHAT = [{"role": "user", "content": PROMPT, "images": [PICTURE]}]
MODELS = [
    DoubleModel("tiny", capabilities=("completion", "vision"), answer=ANSWER, open_ended=True),
    DoubleModel("tiny-embed", capabilities=("embedding",)),
]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "payload.key"
    file.write_text(secrets.token_hex(32))
    return file


@pytest.fixture
def two_keys(tmp_path: Path, key_file: Path) -> Path:
    """A new key, and then the old one."""
    file = tmp_path / "both.key"
    file.write_text(f"{secrets.token_hex(32)}\n{key_file.read_text()}\n")
    return file


def _with(url: str, file: Path) -> str:
    return f"{url}?payload_key_file={file}"


@asynccontextmanager
async def _monitored(url: str) -> AsyncIterator[bytearray]:
    """Everything that Redis is told meanwhile."""
    reader, writer = await asyncio.open_unix_connection(unquote(urlsplit(url).path))
    heard = bytearray()

    async def listen() -> None:
        while data := await reader.read(65536):
            heard.extend(data)

    writer.write(b"MONITOR\r\n")
    listening = asyncio.create_task(listen())
    await wait_until(lambda: b"+OK" in heard, timeout=5, what="the monitor")
    try:
        yield heard
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        writer.close()
        await writer.wait_closed()


async def _day(url: str) -> None:
    """A job that waits; then jobs that are answered, streamed, cut off and gone on with, refused, and cached."""
    async with AsyncClient(url, app="keys", metadata={"who": "tests"}) as client:
        early = client.submit(
            chat=CHAT, model="tiny", wait_for_node=True, session=PROMPT, metadata={"a": PROMPT}
        )
        await wait_until(lambda: _waits(client, early.id), timeout=5, what="it to wait")
        async with OllamaDouble(MODELS) as ollama, worker(url, ollama.url, node="n1", slots=2):
            assert (await early).text == ANSWER
            streamed = client.submit(generate=PROMPT, system=PROMPT, model="tiny", stream=True)
            assert "".join([piece async for piece in streamed]) == ANSWER
            vectors = await client.submit(embed=[PROMPT], model="tiny-embed")
            again = await client.submit(embed=[PROMPT], model="tiny-embed", cache=True)
            assert vectors.embeddings == again.embeddings
            async with AsyncClient(url, app="keys") as other:
                shared = await other.submit(embed=[PROMPT], model="tiny-embed")
                assert shared.routing.cached == "shared"
                assert (await other.attach(early.id)).text == ANSWER
            async with gateway(url) as http:
                assert await run_batches(http, PROMPT, chat="tiny", embed="tiny-embed") == ANSWER
            ollama.faults.die_after_tokens = 2
            cut = client.submit(chat=PROMPT, model="tiny", stream=True)
            reader = aiter(cut)
            pieces = [await anext(reader)]
            ollama.faults.die_after_tokens = None
            async with OllamaDouble(MODELS) as second, worker(url, second.url, node="n2"):
                pieces += [piece async for piece in reader]
            assert "".join(pieces) == (await cut).text == ANSWER
            ollama.faults.answer_status, ollama.faults.answer_text = 400, f"no sense in {PROMPT}"
            with pytest.raises(SollolError):
                await client.submit(chat=CHAT, model="tiny")


async def _dead_letter(url: str) -> None:
    """One that lies among the dead letters."""
    async with fabric_at(url) as fabric:
        await fabric.worker()
        await fabric.submit("dead", envelope=pack({"payload": PROMPT}), blobs=(PICTURE,))
        for _ in range(3):
            await fabric.claim_one()
            await fabric.expire_lease("dead")
            await fabric.reap()
        assert await fabric.state("dead") == "dead"


@pytest.mark.parametrize("is_keyed", [True, False], ids=["with a key", "without, as a proof of the search"])
async def test_nothing_that_was_said_lies_in_redis(tmp_path: Path, key_file: Path, is_keyed: bool) -> None:
    data = tmp_path / "redis"
    with EmbeddedBroker(directory=data, appendfsync="always") as server:
        url = _with(server.url, key_file) if is_keyed else server.url
        async with _monitored(server.url) as heard:
            await _dead_letter(url)
            await _day(url)
            with redis.Redis.from_url(server.url) as raw:
                raw.save()
                raw.bgrewriteaof()
                caches = {bytes(key) for key in raw.scan_iter(f"{Keys().prefix}:cache:*")}
    files = {path.name: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    files["MONITOR"] = bytes(heard)
    assert any(name.endswith(".rdb") for name in files)
    assert any(name.endswith(".aof") for name in files)
    assert b"sollol" in files["MONITOR"]
    found = {canary: [name for name, text in files.items() if canary in text] for canary in CANARIES}
    if is_keyed:
        assert found == {canary: [] for canary in CANARIES}
        assert caches
    else:
        assert all(found.values()), found
        assert "dump.rdb" in found[CANARIES[0]]  # the dead letter


async def test_cache_keys_and_affinities_tell_nothing(redis_url: str, key_file: Path) -> None:
    """Who tries texts against the digests in Redis finds none."""

    async def digests(url: str) -> set[str]:
        async with AsyncClient(url, app="keys") as client, fabric_at(redis_url) as fabric:
            jobs = [
                client.submit(embed=[PROMPT], model="tiny-embed", wait_for_node=True),
                client.submit(chat="hi", session=PROMPT, model="tiny", wait_for_node=True),
            ]
            await wait_until(lambda: _waits(client, jobs[1].id), timeout=5, what="both to wait")
            records = [await fabric.job(job.id) for job in jobs]
            for job in jobs:
                await job.cancel()
            return {records[0]["cache"], records[1]["member"].rpartition("|")[2]}

    plain, keyed = await digests(redis_url), await digests(_with(redis_url, key_file))
    assert len(plain | keyed) == 4
    assert keyed == await digests(_with(redis_url, key_file))


async def test_who_lacks_the_key_is_told(redis_url: str, key_file: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.key"
    strange.write_text(secrets.token_hex(32))
    keyed = _with(redis_url, key_file)
    async with OllamaDouble(MODELS) as ollama:
        async with worker(keyed, ollama.url), AsyncClient(keyed, app="keys") as client:
            job = client.submit(chat=PROMPT, model="tiny", stream=True)
            await job
            for url in (redis_url, _with(redis_url, strange)):
                async with AsyncClient(url) as other:
                    with pytest.raises(KeyMissing, match="SOLLOL_PAYLOAD_KEY_FILE"):
                        await other.attach(job.id)
            # A worker serves clients without a key as well; a client with one takes nothing that is not sealed.
            async with AsyncClient(redis_url) as plain:
                open_job = plain.submit(chat="hi", model="tiny")
                assert (await open_job).text == ANSWER
            with pytest.raises(InvalidJob, match="is not encrypted"):
                await client.attach(open_job.id)
        async with worker(redis_url, ollama.url, most_errors=1), AsyncClient(keyed) as client:
            with pytest.raises(KeyMissing, match="we have none"):
                await client.submit(chat=PROMPT, model="tiny")


async def test_a_worker_that_lacks_the_key_leaves_the_job_to_one_that_has_it(
    redis_url: str, key_file: Path
) -> None:
    keyed = _with(redis_url, key_file)
    async with (
        OllamaDouble(MODELS) as ollama,
        worker(redis_url, ollama.url, node="without"),
        AsyncClient(keyed) as client,
    ):
        job = client.submit(chat=PROMPT, model="tiny")
        await wait_until(lambda: _has_failed(client, job.id), timeout=10, what="the first to fail")
        async with worker(keyed, ollama.url, node="with"):
            assert (await job).routing.node == "with"


async def _waits(client: AsyncClient, job_id: str) -> bool:
    return await client.position(job_id) == 0


async def _has_failed(client: AsyncClient, job_id: str) -> bool:
    view = await client.job(job_id)
    return view is not None and view.errors > 0


async def test_keys_change_while_jobs_wait(redis_url: str, key_file: Path, two_keys: Path) -> None:
    """First the workers learn the new key, then the clients use it; an answer is sealed with its question's key."""
    async with AsyncClient(_with(redis_url, key_file)) as old, AsyncClient(_with(redis_url, two_keys)) as new:
        early = old.submit(chat=PROMPT, model="tiny", wait_for_node=True)
        late = new.submit(chat=PROMPT, model="tiny", wait_for_node=True)
        async with OllamaDouble(MODELS) as ollama, worker(_with(redis_url, two_keys), ollama.url):
            assert (await late).text == (await early).text == ANSWER
        assert (await new.attach(early.id)).text == ANSWER
