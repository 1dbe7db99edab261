"""Backends that refuse, break, lie and dawdle: what the client gets, who tries again, and what reaches whom."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fabric import CHAT_MODEL, let_tokens_flow, worker
from sollol import AsyncClient
from sollol_broker.errors import (
    BackendError,
    BackendTimeout,
    DeadlineExceeded,
    NoNodeForModel,
)
from sollol_broker.words import JobState
from sollol_worker_agent.backends import OllamaBackend, Timeouts
from sollol_worker_agent.doubles import OllamaDouble
from sollol_worker_agent.doubles.http_server import HttpServer, Reply, Request
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as made:
        yield made


class Faulty:
    """An Ollama that lists "tiny" and answers each chat by `answer`, once it may."""

    def __init__(self, answer: Callable[[Reply], Awaitable[None]]) -> None:
        self.answer = answer
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = 0
        self.server = HttpServer(self._handle)

    async def _handle(self, request: Request, reply: Reply) -> None:
        if request.method == "POST":
            self.asked += 1
            await self.may_answer.wait()
            return await self.answer(reply)
        listing = {"models": [{"name": "tiny:latest", "capabilities": ["completion"]}]}
        return await reply.json(200, {"version": "0.33.0", **(listing if "tags" in request.path else {})})


@asynccontextmanager
async def faulty(answer: Callable[[Reply], Awaitable[None]]) -> AsyncIterator[Faulty]:
    """A running Faulty."""
    made = Faulty(answer)
    await made.server.start()
    try:
        yield made
    finally:
        await made.server.stop()


async def truncated(reply: Reply) -> None:
    """Some text, and a proper end of the body, but no `done`."""
    await reply.line({"model": "tiny", "message": {"role": "assistant", "content": "the"}, "done": False})
    await reply.end()


async def garbage(reply: Reply) -> None:
    await reply.raw(b"<html>\n", "text/html")
    await reply.end()


async def cut(reply: Reply) -> None:
    await reply.cut()


async def overloaded(reply: Reply) -> None:
    await reply.json(503, {"error": "server busy"})


async def missing(reply: Reply) -> None:
    await reply.json(404, {"error": "model 'tiny' not found"})


async def dying(reply: Reply) -> None:
    await reply.line({"model": "tiny", "message": {"role": "assistant", "content": "the"}, "done": False})
    await reply.line({"error": "llama runner process has terminated"})
    await reply.end()


async def test_a_4xx_is_the_jobs_own_fault_and_not_tried_again(redis_url: str, client: AsyncClient) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama, worker(redis_url, ollama.url):
        ollama.faults.answer_status, ollama.faults.answer_text = 400, "that is no way to ask"
        job = client.submit(chat="a secret question", model="tiny")
        with pytest.raises(BackendError, match="that is no way to ask") as failed:
            await job
        view = await client.job(job.id)
    assert (failed.value.status, failed.value.retryable) == (400, False)
    assert "secret" not in str(failed.value)
    assert view is not None
    assert (view.state, view.attempt, view.errors) == (JobState.FAILED, 1, 1)
    assert len(ollama.seen.requests) == 1


@pytest.mark.parametrize("answer", [truncated, garbage, cut, overloaded, missing, dying])
async def test_what_fails_on_one_node_is_tried_on_another(
    redis_url: str, client: AsyncClient, answer: Callable[[Reply], Awaitable[None]]
) -> None:
    async with (
        faulty(answer) as bad,
        OllamaDouble([CHAT_MODEL]) as good,
        worker(redis_url, bad.server.url, node="bad"),
    ):
        bad.may_answer.clear()
        job = client.submit(chat="hi", model="tiny")
        await wait_until(lambda: bad.asked == 1, timeout=5, what="the bad node to have it")
        async with worker(redis_url, good.url, node="good"):
            bad.may_answer.set()
            got = await job
        view = await client.job(job.id)
    assert (got.text, got.routing.node, got.routing.attempt) == (FOX, "good", 2)
    assert view is not None
    assert (view.errors, view.crashes, view.releases) == (1, 0, 0)


async def test_a_refused_connection_closes_the_node_until_its_server_is_back(
    redis_url: str, client: AsyncClient
) -> None:
    ollama = OllamaDouble([CHAT_MODEL])
    async with ollama, worker(redis_url, ollama.url, advertise_seconds=0.2) as agent:
        port = int(ollama.url.rpartition(":")[2])
        await client.submit(chat="hi", model="tiny")
        await ollama.stop()
        job = client.submit(chat="hi", model="tiny", wait_for_node=True)
        await wait_until(lambda: agent.lanes[0].down_because, timeout=3, what="the lane to be closed")
        with pytest.raises(NoNodeForModel, match="its backend is down") as refused:
            await _refused_once_known(client)
        assert "n1" in refused.value.reasons
        await ollama._server.start(port)
        assert (await job.result(timeout=30)).text == FOX
        assert not agent.lanes[0].down_because


async def test_with_one_node_only_the_errors_are_counted_to_the_limit(
    redis_url: str, client: AsyncClient
) -> None:
    async with faulty(overloaded) as bad, worker(redis_url, bad.server.url, most_errors=3):
        job = client.submit(chat="hi", model="tiny")
        with pytest.raises(BackendError, match="answered 503") as failed:
            await job.result(timeout=30)
        view = await client.job(job.id)
    assert failed.value.status == 503
    assert view is not None
    assert (view.state, view.attempt, view.errors, view.crashes) == (JobState.FAILED, 3, 3, 0)


@pytest.mark.parametrize("phase", ["connect", "first_token", "between_tokens", "total"])
async def test_the_four_timeouts(redis_url: str, client: AsyncClient, phase: str) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama:
        backend: OllamaBackend = OllamaBackend(ollama.url)
        timeouts = Timeouts(**{"first_token": 5, "between_tokens": 5, phase: 1.0})
        async with worker(redis_url, backend, timeouts=timeouts, most_errors=1):
            with _full_port() if phase == "connect" else socket.socket() as port:
                if phase == "connect":
                    backend._door.url = f"http://127.0.0.1:{port.getsockname()[1]}"
                ollama.tokens_may_flow.clear()
                job = client.submit(chat="hi", model="tiny")
                if phase in ("between_tokens", "total"):
                    await let_tokens_flow(ollama, 2)
                with pytest.raises(BackendTimeout, match=f"the {phase} timeout") as late:
                    await job.result(timeout=30)
    assert late.value.phase == phase
    assert late.value.retryable == (phase != "total")
    assert late.value.partial == ("the quick" if phase in ("between_tokens", "total") else "")
    assert ollama.seen.generating == 0


async def test_a_jobs_own_timeout(redis_url: str, client: AsyncClient) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama, worker(redis_url, ollama.url):
        ollama.tokens_may_flow.clear()
        with pytest.raises(BackendTimeout) as late:
            await client.submit(chat="hi", model="tiny", timeout=0.3).result(timeout=30)
        assert late.value.phase == "total"
        await wait_until(lambda: ollama.seen.generating == 0, timeout=1, what="the backend to be free")
    assert len(ollama.seen.requests) == 1


async def test_a_deadline_that_passes_in_line_never_reaches_the_backend(
    redis_url: str, client: AsyncClient
) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama, worker(redis_url, ollama.url):
        ollama.tokens_may_flow.clear()
        running = client.submit(chat="hi", model="tiny")
        await wait_until(lambda: ollama.seen.generating == 1, timeout=5, what="the slot to be taken")
        late = client.submit(chat="late", model="tiny", deadline=0.2)
        with pytest.raises(DeadlineExceeded, match=late.id):
            await late.result(timeout=30)
        assert late.state is JobState.EXPIRED
        ollama.tokens_may_flow.set()
        await running
    assert len(ollama.seen.requests) == 1


async def test_a_deadline_that_passes_in_mid_answer_frees_the_backend(
    redis_url: str, client: AsyncClient
) -> None:
    async with OllamaDouble([CHAT_MODEL]) as ollama, worker(redis_url, ollama.url):
        ollama.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny", deadline=0.4)
        with pytest.raises(DeadlineExceeded, match=job.id):
            await job.result(timeout=30)
        await wait_until(lambda: ollama.seen.generating == 0, timeout=1, what="the backend to be free")
        view = await client.job(job.id)
    assert view is not None
    assert (view.state, view.errors) == (JobState.EXPIRED, 0)


async def test_a_model_that_is_removed_while_its_jobs_wait(redis_url: str, client: AsyncClient) -> None:
    async with OllamaDouble([CHAT_MODEL]) as first, OllamaDouble([CHAT_MODEL]) as second:
        first.tokens_may_flow.clear()
        async with worker(redis_url, first.url, node="first", advertise_seconds=30):
            running = client.submit(chat="running", model="tiny")
            await wait_until(lambda: first.seen.generating == 1, timeout=5, what="the slot to be taken")
            waiting = [client.submit(chat=f"waiting {at}", model="tiny") for at in range(3)]
            del first.models["tiny:latest"]
            async with worker(redis_url, second.url, node="second"):
                answers = await asyncio.gather(*waiting)
                first.tokens_may_flow.set()
                await running
    assert {answer.text for answer in answers} == {FOX}
    assert {answer.routing.node for answer in answers} == {"second"}


async def _refused_once_known(client: AsyncClient) -> None:
    """Submit until the fabric knows that nobody serves the model; jobs taken in until then are cancelled."""
    for _ in range(100):
        job = client.submit(chat="hi", model="tiny")
        await asyncio.sleep(0.02)
        if job.done():
            await job
        await job.cancel()


def _full_port() -> socket.socket:
    """A port that takes no more connections: those who come hear nothing."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = socket.socket()
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
        _waiting.append(waiting)
    return listener


_waiting: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _close_sockets() -> object:
    yield
    while _waiting:
        _waiting.pop().close()
