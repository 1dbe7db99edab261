"""A node fails in mid-answer and another one takes over: what readers get, and what the next server is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis.asyncio

from fabric import let_tokens_flow, worker
from sollol import AsyncClient
from sollol_broker.codec import unpack
from sollol_broker.errors import BackendError
from sollol_broker.keys import Keys
from sollol_broker.outcome import Seam
from sollol_client import AsyncJob
from sollol_client.answer import Delta
from sollol_worker_agent.backends import OllamaBackend
from sollol_worker_agent.doubles import DoubleModel, OllamaDouble
from sollol_worker_agent.doubles.http_server import HttpServer, Reply, Request
from waiting import wait_until

FOX = "the quick brown fox jumps over the lazy dog"
BEGUN = "the quick brown fox"
CLOSED = DoubleModel("tiny", capabilities=("completion", "tools", "thinking"), answer=FOX)
OPEN = DoubleModel("tiny", capabilities=("completion", "tools", "thinking"), answer=FOX, open_ended=True)
# Continues like the others, and says something else when it begins anew.
CREATIVE = DoubleModel("tiny", answer="a slow fox")
FORMAT = {"type": "object"}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url) as made:
        yield made


async def begun(job: AsyncJob, text: str = BEGUN) -> tuple[AsyncIterator[Delta], list[Delta]]:
    """A reader that has been shown `text`, and its pieces."""
    reader = aiter(job)
    pieces: list[Delta] = []
    async with asyncio.timeout(30):
        while "".join(pieces) != text:
            pieces.append(await anext(reader))
    return reader, pieces


@asynccontextmanager
async def dying(redis_url: str) -> AsyncIterator[OllamaDouble]:
    """A node that has said four tokens of an answer when its server is stopped."""
    async with OllamaDouble([CLOSED]) as first, worker(redis_url, first.url, node="first"):
        first.tokens_may_flow.clear()
        yield first


class Breaking:
    """An Ollama whose answers break off behind these messages, once they may."""

    def __init__(self, messages: Sequence[Mapping[str, Any]]) -> None:
        self.messages = messages
        self.may_break = asyncio.Event()
        self.server = HttpServer(self._handle)

    @property
    def url(self) -> str:
        return self.server.url

    async def _handle(self, request: Request, reply: Reply) -> None:
        if request.method == "POST":
            for message in self.messages:
                await reply.line({"model": "tiny", "message": message, "done": False})
            await self.may_break.wait()
            return await reply.cut()
        listing = {"models": [{"name": "tiny:latest", "capabilities": ["completion", "tools"]}]}
        return await reply.json(200, listing if "tags" in request.path else {"version": "0.33.0"})


@asynccontextmanager
async def breaking(*messages: Mapping[str, Any]) -> AsyncIterator[Breaking]:
    made = Breaking(messages)
    await made.server.start()
    try:
        yield made
    finally:
        await made.server.stop()


async def events_of(redis_url: str, job_id: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """A job's events: id and fields of each."""
    raw: Any = redis.asyncio.Redis.from_url(redis_url)
    async with raw:
        return list(await raw.xrange(Keys().events(job_id)))


def asked_chats(ollama: OllamaDouble) -> list[list[dict[str, Any]]]:
    return [body["messages"] for path, body in ollama.seen.requests if path == "/api/chat"]


async def test_an_open_ended_template_goes_on_behind_the_text(redis_url: str, client: AsyncClient) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True, options={"num_predict": 7})
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second", advertise_seconds=0.2):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
            await wait_until(lambda: _continues(client), timeout=5, what="the probe to be told of")
        told = await client.explain(job.id)
    whole = "the quick brown fox jumps over the"
    assert "".join(pieces) == answer.text == answer["message"]["content"] == whole
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 7)
    assert (answer.routing.node, answer.routing.attempt) == ("second", 2)
    assert answer.routing.seams == (Seam(2, "second", len(BEGUN), "continued"),)
    assert "attempt 2: second goes on at character 19 (continued)" in [each.what for each in told.timeline]
    *probe, rest = second.seen.requests
    assert len(probe) == 2, "it is tried once"
    assert rest[1]["messages"][-1] == {"role": "assistant", "content": BEGUN}
    assert rest[1]["options"]["num_predict"] == 3


@pytest.mark.parametrize("model", [OPEN, CLOSED])
async def test_cancelling_a_job_that_was_taken_over_frees_its_server(
    redis_url: str, client: AsyncClient, model: DoubleModel
) -> None:
    slow = replace(model, token_seconds=0.1)
    async with dying(redis_url) as first, OllamaDouble([slow]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        reader, _ = await begun(job)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            await anext(reader)
            second.tokens_may_flow.clear()
            await wait_until(lambda: second.seen.generating == 1, timeout=5, what="the rest")
            await job.cancel()
            await wait_until(lambda: second.seen.generating == 0, timeout=2, what="the server to be free")


async def test_a_reader_that_comes_back_reads_on_across_the_seam(redis_url: str, client: AsyncClient) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        _, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            whole = await job
        async with AsyncClient(redis_url) as another:
            rest = [piece async for piece in another.attach(job.id, after=pieces[0].entry_id)]
            late = [piece async for piece in another.attach(job.id, after=rest[-1].entry_id)]
    assert pieces[0] + "".join(rest) == whole.text == FOX
    assert late == []


async def test_the_probe_is_made_once_per_model(redis_url: str, client: AsyncClient) -> None:
    async with OllamaDouble([OPEN]) as second:
        for at in range(2):
            async with dying(redis_url) as first:
                job = client.submit(chat=f"hi {at}", model="tiny", stream=True)
                await let_tokens_flow(first, 4)
                reader, pieces = await begun(job)
                async with worker(redis_url, second.url, node="second", advertise_seconds=0.2):
                    await first.stop()
                    pieces += [piece async for piece in reader]
                assert "".join(pieces) == FOX
    # A worker keeps what it knows, and each of these two is a new one.
    assert len(second.seen.requests) == 2 * 3


async def test_a_template_that_closes_the_message_says_it_again_and_goes_on_behind_it(
    redis_url: str, client: AsyncClient
) -> None:
    async with dying(redis_url) as first, OllamaDouble([CLOSED]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == FOX
    assert [(seam.offset, seam.how) for seam in answer.routing.seams] == [(len(BEGUN), "repeated")]
    assert answer["eval_count"] == 9
    assert asked_chats(second)[-1] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("second_model", [CREATIVE, DoubleModel("tiny", answer="the quick")])
async def test_one_that_says_something_else_again_is_an_error_with_the_text_so_far(
    redis_url: str, client: AsyncClient, second_model: DoubleModel
) -> None:
    async with dying(redis_url) as first, OllamaDouble([second_model]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second", most_errors=2) as agent:
            await first.stop()
            with pytest.raises(BackendError, match="closes the last message") as lost:
                pieces += [piece async for piece in reader]
            assert agent.lanes[0].down_because == "", "the server is not to blame"
            with pytest.raises(BackendError):
                await job
    assert "".join(pieces) == lost.value.partial == BEGUN


async def test_an_error_that_ends_the_job_holds_all_that_was_shown(
    redis_url: str, client: AsyncClient
) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        second.faults.answer_status = 500
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        _, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second", most_errors=2):
            await first.stop()
            with pytest.raises(BackendError) as failed:
                await job
    assert failed.value.partial == "".join(pieces) == BEGUN


async def test_another_node_may_do_what_one_cannot(redis_url: str, client: AsyncClient) -> None:
    async with dying(redis_url) as first, OllamaDouble([CREATIVE]) as second, OllamaDouble([OPEN]) as third:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            await wait_until(lambda: len(second.seen.requests) == 3, timeout=10, what="it to be tried there")
            async with worker(redis_url, third.url, node="third"):
                pieces += [piece async for piece in reader]
                answer = await job
    assert "".join(pieces) == answer.text == FOX
    assert answer.routing.seams[-1].node == "third"


@pytest.mark.parametrize(
    "bound",
    [
        {"format": FORMAT},
        {"think": True},
        {"options": {"grammar": "root ::= 'a'"}},
        {"suffix": "."},
    ],
)
async def test_what_cannot_be_continued_is_never_asked_to_be(
    redis_url: str, client: AsyncClient, bound: dict[str, Any]
) -> None:
    """The answer's own beginning is repeated here, so that even then it goes on, but by no continuing."""
    thinks = DoubleModel("tiny", ("completion", "insert", "thinking"), FOX, thinking="well", open_ended=True)
    kind: dict[str, Any] = {"generate": "hi"} if "suffix" in bound else {"chat": "hi"}
    async with (
        OllamaDouble([thinks]) as first,
        OllamaDouble([thinks]) as second,
        worker(redis_url, first.url, node="first"),
    ):
        first.tokens_may_flow.clear()
        job = client.submit(model="tiny", stream=True, **kind, **bound)
        await let_tokens_flow(first, 5)
        reader, pieces = await begun(job, BEGUN)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == FOX
    assert {seam.how for seam in answer.routing.seams} <= {"repeated"}
    assert all(body.get("messages", [{}])[-1].get("role") != "assistant" for _, body in second.seen.requests)


async def test_tools_that_were_called_are_not_called_again(redis_url: str, client: AsyncClient) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    call = {"id": "call_1", "function": {"index": 0, "name": "look", "arguments": {"at": "the fox"}}}
    async with (
        breaking({"role": "assistant", "content": "Let me see.", "tool_calls": [call]}) as first,
        OllamaDouble([OPEN]) as second,
        worker(redis_url, first.url, node="first"),
    ):
        job = client.submit(chat="hi", model="tiny", stream=True, tools=[tool])
        reader, pieces = await begun(job, "Let me see.")
        assert pieces[-1].tool_calls == [call]
        async with worker(redis_url, second.url, node="second"):
            first.may_break.set()
            with pytest.raises(BackendError, match="tool calls cannot be continued") as lost:
                await anext(reader)
    assert lost.value.partial == "Let me see."
    assert second.seen.requests == []


@pytest.mark.parametrize("kind", ["raw", "generate"])
async def test_prompts_are_gone_on_with_too(redis_url: str, client: AsyncClient, kind: str) -> None:
    more = {"raw": True} if kind == "raw" else {"system": "be brief"}
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(generate="Say:", model="tiny", stream=True, options={"num_predict": 8}, **more)
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == answer["response"] == FOX.removesuffix(" dog")
    assert answer.routing.seams == (Seam(2, "second", len(BEGUN), "continued"),)
    path, body = second.seen.requests[-1]
    if kind == "raw":
        assert (path, body["prompt"], len(second.seen.requests)) == ("/api/generate", "Say:" + BEGUN, 1)
    else:
        assert path == "/api/chat"
        assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant"]


async def test_a_text_that_was_as_long_as_it_may_be_is_asked_of_nobody(
    redis_url: str, client: AsyncClient
) -> None:
    async with (
        breaking(
            {"role": "assistant", "content": "the"}, {"role": "assistant", "content": " quick"}
        ) as first,
        OllamaDouble([OPEN]) as second,
        worker(redis_url, first.url, node="first"),
    ):
        job = client.submit(chat="hi", model="tiny", stream=True, options={"num_predict": 2})
        reader, pieces = await begun(job, "the quick")
        async with worker(redis_url, second.url, node="second"):
            first.may_break.set()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == "the quick"
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 2)
    assert answer.routing.seams == (Seam(2, "second", len("the quick"), "complete"),)
    assert second.seen.requests == []


async def test_a_text_that_had_come_to_its_end_gets_nothing_more(redis_url: str, client: AsyncClient) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True)
        first.faults.text_on_last_line = True
        await let_tokens_flow(first, 8)
        reader, pieces = await begun(job, FOX.removesuffix(" dog"))
        second.models["tiny:latest"] = DoubleModel("tiny", answer=FOX.removesuffix(" dog"), open_ended=True)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == FOX.removesuffix(" dog")
    assert (answer["done_reason"], answer["eval_count"]) == ("stop", 8)


@pytest.mark.parametrize("model", [OPEN, CREATIVE])
async def test_a_long_answer_that_nobody_reads_along_is_kept_and_gone_on_with_or_begun_anew(
    redis_url: str, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, model: DoubleModel
) -> None:
    monkeypatch.setattr("sollol_worker_agent.emitter._FIRST_KEPT_SECONDS", 0.0)
    async with dying(redis_url) as first, OllamaDouble([model]) as second:
        job = client.submit(chat="hi", model="tiny")
        await let_tokens_flow(first, 4)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            answer = await job
    if model is OPEN:
        assert (answer.text, answer["eval_count"]) == (FOX, 9)
        assert [(seam.offset, seam.how) for seam in answer.routing.seams] == [(len(BEGUN), "continued")]
    else:
        assert (answer.text, answer.routing.seams) == (CREATIVE.answer, ())


async def test_a_short_answer_that_nobody_reads_along_costs_no_more_than_before(
    redis_url: str, client: AsyncClient
) -> None:
    async with OllamaDouble([OPEN]) as ollama, worker(redis_url, ollama.url):
        job = client.submit(chat="hi", model="tiny")
        await job
        entries = await events_of(redis_url, job.id)
    assert [entry[b"t"] for _, entry in entries] == [b"end"]


async def test_log_probabilities_are_those_of_the_whole_text(redis_url: str, client: AsyncClient) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True, logprobs=True)
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(each["token"] for each in answer["logprobs"]) == answer.text == FOX
    assert answer.routing.seams[0].how == "continued"


@pytest.mark.parametrize("streams", [True, False])
async def test_a_text_whose_beginning_redis_has_dropped_is_not_gone_on_with(
    redis_url: str, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    monkeypatch.setattr("sollol_worker_agent.emitter._FIRST_KEPT_SECONDS", 0.0)
    monkeypatch.setattr("sollol_worker_agent.emitter._KEPT_SECONDS", 0.0)
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(chat="hi", model="tiny", stream=streams)
        for token in range(1, 5):
            await let_tokens_flow(first, token)
            await wait_until(lambda token=token: _kept(redis_url, job.id, token), timeout=5, what="it")
        entries = await events_of(redis_url, job.id)
        first_piece = next(at for at, entry in entries if entry[b"t"] == b"piece")
        async with redis.asyncio.Redis.from_url(redis_url) as raw:
            await raw.xdel(Keys().events(job.id), first_piece)
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            if streams:
                with pytest.raises(BackendError, match="no longer in Redis"):
                    await job
                assert second.seen.requests == []
            else:
                assert (await job).text == FOX
                assert asked_chats(second) == [[{"role": "user", "content": "hi"}]]


async def _kept(redis_url: str, job_id: str, pieces: int) -> bool:
    entries = await events_of(redis_url, job_id)
    return sum(entry[b"t"] == b"piece" for _, entry in entries) >= pieces


async def test_thoughts_alone_begin_anew_and_so_does_the_answer(redis_url: str, client: AsyncClient) -> None:
    thinks = DoubleModel("tiny", ("completion", "thinking"), FOX, thinking="let me see", open_ended=True)
    async with (
        OllamaDouble([thinks]) as first,
        OllamaDouble([thinks]) as second,
        worker(redis_url, first.url, node="first"),
    ):
        first.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny", stream=True, think=True)
        reader = aiter(job)
        await let_tokens_flow(first, 2)
        pieces = [await anext(reader)]
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == FOX
    assert answer.thinking == "let me see"
    assert "".join(piece.thinking for piece in pieces).endswith("let me see")
    assert answer.routing.seams == ()


async def test_two_takeovers_leave_two_seams_and_one_text(redis_url: str, client: AsyncClient) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second, OllamaDouble([OPEN]) as third:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 2)
        reader, pieces = await begun(job, "the quick")
        async with worker(redis_url, second.url, node="second"):
            await first.stop()
            second.faults.die_after_tokens = 2
            second.tokens_may_flow.set()
            async with worker(redis_url, third.url, node="third"):
                pieces += [piece async for piece in reader]
                answer = await job
        entries = [entry for _, entry in await events_of(redis_url, job.id)]
        late = await client.attach(job.id)
    assert "".join(pieces) == answer.text == late.text == FOX
    said = [unpack(entry[b"d"], max_bytes=1 << 20) for entry in entries if entry[b"t"] == b"piece"]
    assert "".join(each.get("text", "") for each in said) == FOX, "the stream is the truth"
    assert len(answer.routing.seams) >= 1


async def _continues(client: AsyncClient) -> bool:
    """Whether the node "second" tells that its model goes on with an answer."""
    (node,) = [node for node in await client.nodes() if node.name == "second"]
    return any(worker.models["tiny"]["continues"] is True for worker in node.workers)


@pytest.mark.parametrize("how", ["leaves", "drains"])
async def test_a_node_that_hands_back_in_mid_answer(redis_url: str, client: AsyncClient, how: str) -> None:
    async with OllamaDouble([CLOSED]) as first, OllamaDouble([OPEN]) as second:
        async with worker(redis_url, first.url, node="first") as leaving:
            first.tokens_may_flow.clear()
            job = client.submit(chat="hi", model="tiny", stream=True)
            await let_tokens_flow(first, 4)
            reader, pieces = await begun(job)
            async with worker(redis_url, second.url, node="second"):
                if how == "leaves":
                    await leaving.stop(drain_seconds=0)
                else:
                    await client.drain("first", seconds=0)
                pieces += [piece async for piece in reader]
                answer = await job
        view = await client.job(job.id)
    assert "".join(pieces) == answer.text == FOX
    assert answer.routing.seams == (Seam(2, "second", len(BEGUN), "continued"),)
    assert view is not None
    assert (view.releases, view.errors, view.crashes) == (1, 0, 0)


async def test_a_node_that_hands_back_keeps_even_a_short_answer_that_nobody_reads(
    redis_url: str, client: AsyncClient
) -> None:
    async with (
        OllamaDouble([CLOSED]) as first,
        OllamaDouble([OPEN]) as second,
        worker(redis_url, first.url, node="first") as leaving,
    ):
        first.tokens_may_flow.clear()
        job = client.submit(chat="hi", model="tiny")
        await let_tokens_flow(first, 4)
        (running,) = leaving._puller.running.values()
        await wait_until(
            lambda: running.runner is not None and running.runner.text_so_far == BEGUN,
            timeout=5,
            what="the text is with the worker",
        )
        assert await events_of(redis_url, job.id) == []
        async with worker(redis_url, second.url, node="second"):
            await leaving.stop(drain_seconds=0)
            answer = await job
    assert answer.text == FOX
    assert answer.routing.seams == (Seam(2, "second", len(BEGUN), "continued"),)


async def test_a_model_that_thinks_before_it_goes_on_is_made_to_say_it_again(
    redis_url: str, client: AsyncClient
) -> None:
    async with dying(redis_url) as first, OllamaDouble([OPEN]) as second:
        job = client.submit(chat="hi", model="tiny", stream=True)
        await let_tokens_flow(first, 4)
        reader, pieces = await begun(job)
        async with worker(redis_url, second.url, node="second") as agent:
            backend = agent.lanes[0].backend
            assert isinstance(backend, OllamaBackend)
            # It passes the probe, and then comes with a thought.
            assert await backend._probes.goes_on(
                "tiny:latest", None, partial(backend._ask, "tiny:latest", {})
            )
            thinks = DoubleModel("tiny", ("completion", "thinking"), FOX, thinking="well", open_ended=True)
            second.models = {thinks.full_name: thinks}
            await first.stop()
            pieces += [piece async for piece in reader]
            answer = await job
    assert "".join(pieces) == answer.text == FOX
    assert [seam.how for seam in answer.routing.seams] == ["repeated"]
