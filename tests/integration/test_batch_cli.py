"""`sollol batch`: from file to file, broken off and gone on with, shown and cancelled."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import redis
from click.testing import CliRunner, Result

from fabric import worker
from sollol.batch.items import survey
from sollol.batch.outputs import NpyOutput, part_of
from sollol.batch.run import Done, Wanted, run
from sollol.cli.app import app as command_line
from sollol_broker.errors import BackendError
from sollol_broker.keys import Keys
from sollol_broker.words import JobKind
from sollol_client import AsyncBatch, AsyncClient, BatchItem
from sollol_worker_agent.backends import EchoBackend
from waiting import wait_until


class Counting(EchoBackend):
    """Counts how often it saw each text; refuses those that begin with "bad"; holds all while it may not answer."""

    def __init__(self) -> None:
        super().__init__("echo://?slots=2")
        self.seen: Counter[str] = Counter()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.holds_after = 1 << 30

    async def embed(self, model: str, request: Any, timeouts: Any) -> Any:
        texts = request["input"]
        if sum(self.seen.values()) >= self.holds_after:
            await self.may_answer.wait()
        if any(text.startswith("bad") for text in texts):
            raise BackendError("this text cannot be embedded", status=400)
        self.seen.update(texts)
        return await super().embed(model, request, timeouts)


@pytest.fixture
async def backend(redis_url: str) -> AsyncIterator[Counting]:
    backend = Counting()
    # A lease that outlasts a busy moment of this machine, or a text would be embedded twice for another reason.
    async with worker(redis_url, backend, lease_seconds=20):
        yield backend


async def sollol(redis_url: str, *arguments: str) -> Result:
    """In a thread: the workers run in this loop."""
    return await asyncio.to_thread(
        CliRunner().invoke, command_line, ["batch", *arguments, "--redis", redis_url], catch_exceptions=False
    )


@asynccontextmanager
async def process(redis_url: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """As users start it; it may be killed."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sollol.cli", "batch", *arguments),
        env={**os.environ, "SOLLOL_REDIS_URL": redis_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


def _texts(folder: Path, count: int) -> tuple[Path, list[str]]:
    texts = [f"text number {n}" for n in range(count)]
    file = folder / "in.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"n{n}", "text": text}) for n, text in enumerate(texts)))
    return file, texts


def _names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def _vectors(redis_url: str, texts: list[str]) -> Any:
    async with AsyncClient(redis_url) as client:
        answer = await client.submit(embed=texts, model="echo-embed", cache=False)
    return np.array(answer.embeddings, np.float32)


async def test_texts_become_a_matrix_a_table_or_lines(
    redis_url: str, backend: Counting, tmp_path: Path
) -> None:
    file, texts = _texts(tmp_path, 300)
    direct = await _vectors(redis_url, texts)
    asked = ("embed", str(file), "-m", "echo-embed", "-o")
    said = await sollol(redis_url, *asked, str(tmp_path / "out.npy"), "--json")
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert (told["items"], told["failed"], told["files"]) == (300, 0, [str(tmp_path / "out.npy")])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), direct)
    assert (await sollol(redis_url, *asked, str(tmp_path / "out.parquet"), "--chunk", "7")).exit_code == 0
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["id"] == [f"n{n}" for n in range(300)]
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), direct)
    said = await sollol(redis_url, *asked, str(tmp_path / "out.jsonl"))
    assert "300 items in" in said.stdout
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.array([each["embedding"] for each in lines], np.float32), direct)
    assert _names(tmp_path) == [
        "in.jsonl",
        "out.jsonl",
        "out.npy",
        "out.parquet",
    ]
    listed = json.loads((await sollol(redis_url, "list", "--json")).stdout)
    assert [(each["state"], each["completed"], each["metadata"]["output"]) for each in listed] == [
        ("completed", 300, name) for name in ("out.jsonl", "out.parquet", "out.npy")
    ]


async def test_prompts_become_answers_by_line(redis_url: str, backend: Counting, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n\nthree\n")
    for command in ("chat", "generate"):
        out = tmp_path / f"{command}.jsonl"
        said = await sollol(redis_url, command, str(tmp_path / "in.txt"), "-m", "echo", "-o", str(out))
        assert said.exit_code == 0, said.output
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [(each["index"], each["text"]) for each in lines] == [(0, "one"), (1, "two"), (2, "three")]
        assert lines[0]["eval_count"] == 1


async def test_what_fails_is_told_and_the_rest_is_there(
    redis_url: str, backend: Counting, tmp_path: Path
) -> None:
    file, _ = _texts(tmp_path, 20)
    file.write_text(file.read_text().replace("text number 7", "bad text"))
    out = tmp_path / "out.parquet"
    said = await sollol(redis_url, "embed", str(file), "-m", "echo-embed", "-o", str(out))
    assert said.exit_code == 5
    assert "1 item failed" in said.stderr
    table = pq.read_table(out).to_pydict()
    assert [n for n, vector in enumerate(table["embedding"]) if vector is None] == [7]
    assert "this text cannot be embedded" in table["error"][7]
    batch_id = said.stderr.split()[1].rstrip(":")
    shown = json.loads((await sollol(redis_url, "show", batch_id, "--json")).stdout)
    assert (shown["state"], shown["failed"], shown["percent"]) == ("completed", 1, 100.0)
    seen = (await sollol(redis_url, "show", batch_id)).stdout
    assert "20, 19 answered, 1 failed" in seen
    async with AsyncClient(redis_url) as client:
        kept = await client.batch(embed=["bad text", "good"], model="echo-embed")
        await kept.wait()
    assert "item 0: BackendError: this text" in (await sollol(redis_url, "show", kept.id)).stdout
    assert (await sollol(redis_url, "cancel", batch_id)).stdout.startswith(
        f"batch {batch_id} had already ended"
    )
    assert (await sollol(redis_url, "show", "nope")).exit_code == 5


async def test_a_run_that_was_killed_goes_on_and_no_text_is_embedded_twice(
    redis_url: str, backend: Counting, tmp_path: Path
) -> None:
    file, texts = _texts(tmp_path, 400)
    out = tmp_path / "out.npy"
    asked = ("embed", str(file), "-m", "echo-embed", "-o", str(out), "--chunk", "10")
    backend.holds_after = 150
    backend.may_answer.clear()
    async with process(redis_url, *asked) as dying:
        part = part_of(out)
        await wait_until(lambda: part.exists() and part.stat().st_size > 500, timeout=40, what="rows")
        busy = await sollol(redis_url, *asked)
        assert (busy.exit_code, "another run" in busy.stderr) == (2, True)
        dying.send_signal(signal.SIGKILL)
        await dying.wait()
    assert not out.exists()
    with redis.Redis.from_url(redis_url) as client:  # as if it had died a while ago
        (batch_id,) = client.zrange(Keys().batches, 0, -1)
        client.hset(Keys().batch(bytes(batch_id).decode()), "until", "0")
    other = await sollol(redis_url, *asked, "--option", "seed=3")
    assert (other.exit_code, "another options" in other.stderr) == (2, True)
    backend.may_answer.set()
    said = await sollol(redis_url, *asked, "--json")
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert 0 < told["written_before"] < 400
    np.testing.assert_array_equal(np.load(out), await _vectors(redis_url, texts))
    assert all(count == 2 for count in backend.seen.values()), "once by the batch, and once by this test"
    assert _names(tmp_path) == ["in.jsonl", "out.npy"]


async def test_a_batch_that_somebody_cancels_keeps_what_is_written(
    redis_url: str, backend: Counting, tmp_path: Path
) -> None:
    file, texts = _texts(tmp_path, 200)
    out = tmp_path / "out.npy"
    asked = ("embed", str(file), "-m", "echo-embed", "-o", str(out), "--chunk", "10")
    backend.holds_after = 50
    backend.may_answer.clear()
    running = asyncio.create_task(sollol(redis_url, *asked))
    part = part_of(out)
    await wait_until(lambda: part.exists() and part.stat().st_size > 500, timeout=40, what="rows")
    (found,) = json.loads((await sollol(redis_url, "list", "--json")).stdout)
    assert (await sollol(redis_url, "cancel", found["id"])).stdout == f"batch {found['id']} is cancelled\n"
    said = await running
    assert said.exit_code == 5
    assert "the same command goes on with the rest" in said.stderr
    backend.may_answer.set()
    said = await sollol(redis_url, *asked)
    assert said.exit_code == 0, said.output
    assert "that an earlier run has written" in said.stderr
    np.testing.assert_array_equal(np.load(out), await _vectors(redis_url, texts))


async def test_ctrl_c_leaves_it_to_the_next_run(redis_url: str, backend: Counting, tmp_path: Path) -> None:
    file, _ = _texts(tmp_path, 100)
    backend.holds_after = 20
    backend.may_answer.clear()
    asked = (
        "embed",
        str(file),
        "-m",
        "echo-embed",
        "-o",
        str(tmp_path / "out.jsonl"),
        "--chunk",
        "10",
        "--json",
    )
    async with process(redis_url, *asked) as running:
        part = part_of(tmp_path / "out.jsonl")
        await wait_until(lambda: part.exists() and part.stat().st_size > 500, timeout=40, what="rows")
        running.send_signal(signal.SIGINT)
        said, told = await running.communicate()
    assert running.returncode == 130
    assert b"the same command goes on with the rest" in told
    assert json.loads(said)["error"] == "Interrupted"
    backend.may_answer.set()
    assert json.loads((await sollol(redis_url, *asked)).stdout)["written_before"] > 0


async def _after_a_full_disk(
    redis_url: str, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[Done, Path, list[str]]:
    """A run that cannot write its second page, and the next one."""
    file, texts = _texts(folder, 400)
    wanted = Wanted(survey(file, JobKind.EMBED), folder / "out.npy", "echo-embed", {}, {"chunk": 5})
    pages = 0
    add = NpyOutput.add

    def full(output: NpyOutput, rows: Any) -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(output, rows)

    patch.setattr(NpyOutput, "add", full)
    async with AsyncClient(redis_url) as client:
        with pytest.raises(OSError, match="No space"):
            await run(client, wanted, on_start=_ignore, on_progress=_ignore)
        return await run(client, wanted, on_start=_ignore, on_progress=_ignore), wanted.output, texts


def _ignore(*told: object) -> None:
    """Nobody looks."""


async def test_a_full_disk_loses_nothing(
    redis_url: str, backend: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, out, texts = await _after_a_full_disk(redis_url, tmp_path, monkeypatch)
    assert (done.items, done.failed) == (400, 0)
    assert max(backend.seen.values()) == 1
    np.testing.assert_array_equal(np.load(out), await _vectors(redis_url, texts))


async def test_results_that_were_dropped_before_they_were_written_would_be_missed(
    redis_url: str, backend: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above finds it: a reader that asks for the next page before it has written this one."""
    pages = AsyncBatch.pages

    async def hasty(
        batch: AsyncBatch, start: int = 0, *more: Any, **others: Any
    ) -> AsyncIterator[list[BatchItem]]:
        found = pages(batch, start, *more, **others)
        held = await anext(found, None)
        while held is not None:
            following = await anext(found, None)
            yield held
            held = following

    monkeypatch.setattr(AsyncBatch, "pages", hasty)
    done, _, _ = await _after_a_full_disk(redis_url, tmp_path, monkeypatch)
    assert done.failed > 0


async def test_what_cannot_be_begun_is_said_at_once(
    redis_url: str, backend: Counting, tmp_path: Path
) -> None:
    file, _ = _texts(tmp_path, 2)
    for arguments, code, told in (
        (("embed", "none.txt", "-m", "echo-embed", "-o", str(tmp_path / "x.npy")), 2, "No such file"),
        (("chat", str(file), "-m", "echo", "-o", str(tmp_path / "x.npy")), 2, "end with .jsonl"),
        (("embed", str(file), "-m", "nope", "-o", str(tmp_path / "x.npy")), 4, "no node serves nope"),
        (
            ("embed", str(file), "-m", "echo-embed", "-o", str(tmp_path / "x.npy"), "--field", "y"),
            2,
            "--field",
        ),
    ):
        said = await sollol(redis_url, *arguments)
        assert (said.exit_code, told in said.stderr) == (code, True), said.stderr
    # A name that was misspelt is corrected, and that is all.
    said = await sollol(redis_url, "embed", str(file), "-m", "echo-embed", "-o", str(tmp_path / "x.npy"))
    assert said.exit_code == 0, said.stderr


async def test_a_batch_of_failures_tells_why_and_leaves_nothing_behind(
    redis_url: str, backend: Counting, tmp_path: Path
) -> None:
    file, out = tmp_path / "in.txt", tmp_path / "out.npy"
    file.write_text("bad text\nbad text, too\n")
    said = await sollol(redis_url, "embed", str(file), "-m", "echo-embed", "-o", str(out))
    assert said.exit_code == 5
    assert "each of its 2 items failed, the first because: " in said.stderr
    assert "this text cannot be embedded" in said.stderr
    assert [each for each in os.listdir(tmp_path) if not each.startswith(".")] == ["in.txt"]
