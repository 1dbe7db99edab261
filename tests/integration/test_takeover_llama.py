"""Worker processes and llama-servers that are killed in mid-answer: the answer is the uninterrupted one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabric import output_of, worker, worker_process
from gate import gate
from sollol import Answer, AsyncClient, BackendError, Client, Delta
from sollol_broker.broker import Broker, Lease
from sollol_broker.url import parse
from sollol_broker.words import JobKind
from sollol_client.follow import Follower
from sollol_worker_agent.backends import End, LlamaServerBackend, OpenAIBackend, Piece, Timeouts
from sollol_worker_agent.backends.protocol import Said
from sollol_worker_agent.llama_process import LlamaServerProcess
from sollol_worker_agent.so_far import SoFar, so_far
from waiting import wait_until

TOKENS = 48
OPTIONS = {"temperature": 0, "seed": 1, "num_predict": TOKENS}
# The toy spells its words with unusual tokens, so that only these tell exactly what it has said.
ASKED: dict[str, dict[str, Any]] = {
    "smollm2 chat": {"model": "smollm2", "chat": "Tell me a short story about a fox."},
    "smollm2 generate": {"model": "smollm2", "generate": "List three colours.", "system": "You are brief."},
    "smollm2 raw": {"model": "smollm2", "generate": "Once upon a time", "raw": True},
    "toy raw": {"model": "toy", "generate": "there was a man", "raw": True},
}
# Reads a job from its beginning, in a process of its own.
_READER = """
import sys
from sollol import Client
with Client(sys.argv[1]) as client:
    for piece in client.attach(sys.argv[2]):
        print(piece, end="", flush=True)
"""


@pytest.fixture(scope="module")
def models(toy_chat_model: Path, smollm2_path: Path) -> dict[str, Path]:
    """Files of two models."""
    return {"toy": toy_chat_model, "smollm2": smollm2_path}


@pytest.fixture(scope="module")
def servers(
    toy_llama_server: str, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """URLs of two llama-servers, by model."""
    process = LlamaServerProcess(
        model_path=models["smollm2"],
        alias="smollm2",
        slots=2,
        threads=1,
        log_directory=tmp_path_factory.mktemp("logs"),
    )
    asyncio.run(process.start())
    try:
        yield {"toy": toy_llama_server, "smollm2": process.url}
    finally:
        asyncio.run(process.stop())


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url, app="readers") as made:
        yield made


_uninterrupted: dict[str, Answer] = {}


async def uninterrupted(client: AsyncClient, url: str, name: str, redis_url: str) -> Answer:
    """The answer of one node that lives."""
    if name not in _uninterrupted:
        async with worker(redis_url, url, node="alone"):
            _uninterrupted[name] = await client.submit(**ASKED[name], options=OPTIONS, cache=False)
    return _uninterrupted[name]


async def all_shown(redis_url: str, job_id: str, tokens: int) -> None:
    """Wait until so many tokens of a job lie in Redis."""
    broker = Broker(parse(redis_url), name="tests")

    async def there() -> bool:
        return so_far(await broker.pieces(Lease(job_id, 0, ""))).said.tokens >= tokens

    try:
        await wait_until(there, timeout=30, what=f"{tokens} tokens")
    finally:
        await broker.close()


async def all_up(client: AsyncClient, count: int) -> None:
    """Wait until so many nodes have joined."""

    async def there() -> bool:
        return len(await client.nodes()) >= count

    await wait_until(there, timeout=30, what=f"{count} nodes")


def check(whole: Answer, pieces: list[Delta], answer: Answer) -> None:
    """One text, the same for all who read it, without a gap and nothing twice."""
    assert "".join(pieces) == answer.text == whole.text
    assert (answer["done_reason"], answer["eval_count"]) == (whole["done_reason"], whole["eval_count"])
    assert answer["prompt_eval_count"] == whole["prompt_eval_count"]
    assert [(seam.attempt, seam.how) for seam in answer.routing.seams] == [(2, "continued")]


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("smollm2 chat", 1),
        ("smollm2 chat", 13),
        ("smollm2 chat", 40),
        ("smollm2 generate", 20),
        ("smollm2 raw", 20),
        ("toy raw", 1),
        ("toy raw", 13),
        ("toy raw", 40),
    ],
)
async def test_a_killed_worker_leaves_no_trace_in_the_text(
    redis_url: str, client: AsyncClient, servers: dict[str, str], tmp_path: Path, name: str, cut: int
) -> None:
    url = servers[ASKED[name]["model"]]
    whole = await uninterrupted(client, url, name, redis_url)
    async with (
        gate(url, cut if "raw" in name else cut + 1) as held,
        worker_process(redis_url, tmp_path / "n1", "--backend", held.url) as first,
        worker_process(redis_url, tmp_path / "n2", "--backend", url, node="n2"),
    ):
        await all_up(client, 2)
        await client.cordon("n2")
        job = client.submit(**ASKED[name], options=OPTIONS, stream=True)
        await all_shown(redis_url, job.id, cut)
        await client.uncordon("n2")
        late = asyncio.create_task(_read_elsewhere(redis_url, job.id))
        first.process.kill()
        pieces = [piece async for piece in job]
        answer = await job
        assert await late == whole.text
    check(whole, pieces, answer)
    assert answer.routing.node == "n2"


async def _read_elsewhere(redis_url: str, job_id: str) -> str:
    return await asyncio.to_thread(output_of, _READER, redis_url, job_id)


async def test_a_worker_that_wakes_up_while_another_goes_on_adds_nothing(
    redis_url: str, client: AsyncClient, servers: dict[str, str], tmp_path: Path
) -> None:
    whole = await uninterrupted(client, servers["toy"], "toy raw", redis_url)
    async with (
        gate(servers["toy"], 10) as held,
        gate(servers["toy"], 10) as other,
        worker_process(redis_url, tmp_path / "n1", "--backend", held.url) as zombie,
    ):
        job = client.submit(**ASKED["toy raw"], options=OPTIONS, stream=True, wait_for_node=True)
        await all_shown(redis_url, job.id, 10)
        zombie.process.send_signal(signal.SIGSTOP)
        async with worker_process(redis_url, tmp_path / "n2", "--backend", other.url, node="n2"):
            await all_shown(redis_url, job.id, 20)
            # It has what to say, and believes in its lease for as long as nobody tells it.
            await held.allow(None)
            zombie.process.send_signal(signal.SIGCONT)
            await wait_until(lambda: held.passed > TOKENS, timeout=10, what="the zombie to be told the rest")
            await other.allow(None)
            pieces = [piece async for piece in job]
            answer = await job
    check(whole, pieces, answer)
    assert answer.routing.node == "n2"


@pytest.mark.parametrize("name", ["smollm2 chat", "toy raw"])
@pytest.mark.parametrize("cut", [5, 30])
async def test_a_killed_llama_server_leaves_no_trace_in_the_text(
    redis_url: str,
    client: AsyncClient,
    servers: dict[str, str],
    models: dict[str, Path],
    tmp_path: Path,
    name: str,
    cut: int,
) -> None:
    model = ASKED[name]["model"]
    whole = await uninterrupted(client, servers[model], name, redis_url)
    mortal = LlamaServerProcess(
        model_path=models[model], alias=model, slots=2, threads=1, log_directory=tmp_path
    )
    # A small model has said all before it can be killed: the gate holds that back. A chat begins with an empty piece.
    allowed = cut if "raw" in name else cut + 1
    async with mortal, gate(mortal.url, allowed) as held, worker(redis_url, held.url, node="n1"):
        job = client.submit(**ASKED[name], options=OPTIONS, stream=True)
        await all_shown(redis_url, job.id, cut)
        async with worker(redis_url, servers[model], node="n2"):
            assert mortal.pid is not None
            os.kill(mortal.pid, signal.SIGKILL)
            await held.stop()
            pieces = [piece async for piece in job]
            answer = await job
    check(whole, pieces, answer)


async def test_a_server_that_is_asked_as_any_openai_server_passes_the_probe_and_goes_on(
    redis_url: str, client: AsyncClient, servers: dict[str, str]
) -> None:
    name, url = "smollm2 chat", servers["smollm2"]
    whole = await uninterrupted(client, url, name, redis_url)
    async with gate(url, 14) as held, worker(redis_url, held.url, node="n1"):
        job = client.submit(**ASKED[name], options=OPTIONS, stream=True)
        await all_shown(redis_url, job.id, 13)
        async with worker(redis_url, OpenAIBackend(url), node="n2"):
            await held.stop()
            pieces = [piece async for piece in job]
            answer = await job
    check(whole, pieces, answer)
    assert answer.routing.backend == "openai"


_TRIMMING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim }}"
    "{% if not loop.last or add_generation_prompt %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


async def test_a_template_that_trims_messages_loses_no_blank(models: dict[str, Path], tmp_path: Path) -> None:
    request = {
        "messages": [{"role": "user", "content": "Count: one, two, three, each on a line of its own."}],
        "options": OPTIONS,
    }
    process = LlamaServerProcess(
        model_path=models["smollm2"],
        alias="smollm2",
        threads=1,
        log_directory=tmp_path,
        extra_args=("--jinja", "--chat-template", _TRIMMING),
    )
    async with process:
        backend = LlamaServerBackend(process.url)
        whole, end = await _told(backend.chat("smollm2", request, Timeouts()))
        text, blanks = Said(tuple(whole)).text, 0
        for cut in range(1, len(whole)):
            said = Said(tuple(whole[:cut]))
            if not said.text[-1].isspace() and cut % 12:
                continue
            rest, last = await _told(backend.resume(JobKind.CHAT, "smollm2", request, said, Timeouts()))
            assert said.text + Said(tuple(rest)).text == text
            assert last.fields["eval_count"] == end.fields["eval_count"] - said.tokens
            blanks += said.text[-1].isspace()
        await backend.close()
    assert blanks, "no cut was behind white space: this shows too little"


async def _told(events: AsyncIterator[Piece | End]) -> tuple[list[Piece], End]:
    said = [event async for event in events]
    *pieces, end = said
    assert isinstance(end, End)
    return [piece for piece in pieces if isinstance(piece, Piece)], end


@pytest.mark.parametrize("streams", [True, False])
async def test_a_server_that_hangs_is_left_and_its_answer_gone_on_with(
    redis_url: str, client: AsyncClient, servers: dict[str, str], streams: bool
) -> None:
    """Also where nobody reads along: what was said is kept when the backend fails."""
    whole = await uninterrupted(client, servers["toy"], "toy raw", redis_url)
    async with (
        gate(servers["toy"], 20) as held,
        worker(redis_url, held.url, node="n1", timeouts=Timeouts(between_tokens=0.5)),
    ):
        job = client.submit(**ASKED["toy raw"], options=OPTIONS, stream=streams, cache=False)
        await wait_until(lambda: held.passed == 20, timeout=10, what="it to hang")
        async with worker(redis_url, servers["toy"], node="n2"):
            pieces = [piece async for piece in job]
            answer = await job
    check(whole, pieces, answer)
    assert answer.routing.seams[0].offset > 0


async def test_a_long_answer_that_nobody_reads_along_survives_its_worker(
    redis_url: str, client: AsyncClient, servers: dict[str, str], tmp_path: Path
) -> None:
    whole = await uninterrupted(client, servers["toy"], "toy raw", redis_url)
    broker = Broker(parse(redis_url), name="tests")
    async with (
        gate(servers["toy"], 5) as held,
        worker_process(redis_url, tmp_path / "n1", "--backend", held.url) as first,
        worker_process(redis_url, tmp_path / "n2", "--backend", servers["toy"], node="n2"),
    ):
        await all_up(client, 2)
        await client.cordon("n2")
        job = client.submit(**ASKED["toy raw"], options=OPTIONS, cache=False)
        await wait_until(lambda: held.passed == 5, timeout=10, what="the answer to begin")

        async def is_kept() -> bool:
            # One more token now and then, until one comes late enough for a copy.
            if not await broker.pieces(Lease(job.id, 0, "")) and held.passed < TOKENS - 5:
                await asyncio.sleep(0.2)
                await held.allow(1)
            return bool(await broker.pieces(Lease(job.id, 0, "")))

        await wait_until(is_kept, timeout=20, what="a copy of it")
        kept = len(so_far(await broker.pieces(Lease(job.id, 0, ""))).said.text)
        await client.uncordon("n2")
        first.process.kill()
        answer = await asyncio.to_thread(_result, redis_url, job.id)
        assert (await job).text == answer.text
    await broker.close()
    assert answer.text == whole.text
    assert [(seam.offset, seam.how) for seam in answer.routing.seams] == [(kept, "continued")]
    assert answer["eval_count"] == TOKENS


def _result(redis_url: str, job_id: str) -> Answer:
    with Client(redis_url) as client:
        return client.attach(job_id).result(timeout=60)


def _anew_as_if_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker begins anew, and says that it goes on."""
    monkeypatch.setattr(
        LlamaServerBackend,
        "resume",
        lambda self, kind, model, request, said, timeouts: self.generate(model, request, timeouts),
    )


def _offset_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker begins anew, and a reader shows whatever comes."""

    def show(self: Follower, data: Mapping[str, Any]) -> Delta:
        self._chars += len(data.get("text", ""))
        return Delta.of(data)

    monkeypatch.setattr("sollol_worker_agent.runner.so_far", lambda entries: SoFar())
    monkeypatch.setattr(Follower, "_piece", show)
    monkeypatch.setattr(Follower, "_rest", lambda self, text: None)


def _as_long_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker may say as much as the first."""
    monkeypatch.setattr(
        "sollol_worker_agent.backends.llama_server.for_the_rest", lambda request, said: dict(request)
    )


def _first_piece_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next worker does not see what was said first."""
    monkeypatch.setattr(
        "sollol_worker_agent.runner.so_far",
        lambda entries: replace(found := so_far(entries), said=Said(found.said.pieces[1:])),
    )


@pytest.mark.parametrize(
    "mutate", [None, _anew_as_if_going_on, _offset_ignored, _as_long_as_ever, _first_piece_lost]
)
async def test_what_goes_wrong_at_the_seam_is_seen(
    redis_url: str,
    client: AsyncClient,
    servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    mutate: Callable[[pytest.MonkeyPatch], None] | None,
) -> None:
    whole = await uninterrupted(client, servers["toy"], "toy raw", redis_url)
    if mutate is not None:
        mutate(monkeypatch)
    async with gate(servers["toy"], 20) as held, worker(redis_url, held.url, node="n1"):
        job = client.submit(**ASKED["toy raw"], options=OPTIONS, stream=True, cache=False)
        reader = aiter(job)
        pieces = [await anext(reader)]
        await all_shown(redis_url, job.id, 20)
        async with worker(redis_url, servers["toy"], node="n2"):
            await held.stop()
            try:
                pieces += [piece async for piece in reader]
                check(whole, pieces, await job)
            except (AssertionError, BackendError):
                assert mutate is not None
            else:
                assert mutate is None, "and nobody noticed"
