"""Each example runs as its reader would run it: as a program of its own, on what `sollol up` starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from group_fleet import RAM_MIB, Fleet, is_formable
from sollol import Client
from sollol.local.fabric import LocalFabric, free_port
from waiting import wait_until

_EXAMPLES = Path(__file__).parents[2] / "examples"
# These bring a hundred packages; tests/conformance/frameworks runs them.
_FRAMEWORKS = {"langchain_chat", "llama_index_chat", "autogen_team"}


@pytest.fixture(scope="module")
def fabric(smollm2_path: Path, minilm_path: Path) -> Iterator[LocalFabric]:
    models = (f"smollm2={smollm2_path}", f"all-minilm={minilm_path}")
    with LocalFabric(models=models, gateway_port=free_port(0)) as fabric:
        yield fabric


def test_every_example_is_tested_and_listed() -> None:
    names = {path.stem for path in _EXAMPLES.glob("*.py")}
    used = re.compile(r"""_example(?:_path)?\((?:fabric, )?["'](\w+)["']""")
    tested = set(used.findall(Path(__file__).read_text()))
    assert names == tested | _FRAMEWORKS
    listed = set(re.findall(r"^\| `(\w+)\.py`", (_EXAMPLES / "README.md").read_text(), re.M))
    assert listed == names


def test_agents_are_answered_in_the_order_of_their_roles(fabric: LocalFabric) -> None:
    lines = _example(fabric, "parallel_agents").splitlines()
    assert len(lines) == 10
    waited = {"researcher": 0.0, "editor": 0.0, "summarizer": 0.0}
    for line in lines:
        role, seconds = line.split()[0], float(line.split()[2])
        waited[role] = max(waited[role], seconds)
    # All came at once: the last summarizer waits longer than the last researcher, whatever the machine's pace.
    assert waited["researcher"] < waited["summarizer"]


def test_a_folder_is_searched_by_meaning_and_embedded_once(fabric: LocalFabric, tmp_path: Path) -> None:
    for number, text in enumerate(
        ["The cat sat on the warm windowsill and purred.", "Taxes are due in April."]
    ):
        (tmp_path / f"{number}.md").write_text(f"{text} {'It was a day like any other day. ' * 3}")
    for _ in range(2):
        lines = _example(fabric, "batch_search", str(tmp_path), "a sleeping pet").splitlines()
        assert lines[0] == "2 paragraphs, 0 failed"
        assert "The cat sat" in lines[1]
    with Client(fabric.url) as client:
        assert [each.total for each in client.batches()] == [2]


async def test_a_web_page_shows_the_answer_as_it_is_made(fabric: LocalFabric) -> None:
    port = free_port(0)
    with _serving(fabric, [str(_example_path("web_chat"))], port):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            await _up(http, "/")
            assert "EventSource" in (await http.get("/")).text
            async with http.stream("GET", "/ask", params={"text": "Name a fruit."}, timeout=60) as answer:
                events = "".join([text async for text in answer.aiter_text()])
    assert events.count("\ndata: ") + events.startswith("data: ") > 3
    assert re.search(r'event: done\ndata: "answered by .+"\n\n$', events)


async def test_the_client_inside_flask(fabric: LocalFabric) -> None:
    port = free_port(0)
    words = ["-m", "flask", "--app", str(_example_path("flask_app")), "run", "--port", str(port)]
    with _serving(fabric, words, port):
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60
        ) as http:
            await _up(http, "/")
            told = (await http.get("/ask", params={"text": "Name a fruit."})).json()
            assert told["answer"]
            assert told["node"]
            assert (await http.get("/stream", params={"text": "Name a fruit."})).text


async def test_the_client_inside_fastapi(fabric: LocalFabric) -> None:
    port = free_port(0)
    words = ["-m", "uvicorn", "--app-dir", str(_EXAMPLES), f"{_example_path('fastapi_app').stem}:app"]
    with _serving(fabric, [*words, "--port", str(port)], port):
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60
        ) as http:
            await _up(http, "/docs")
            assert (await http.get("/ask", params={"text": "Name a fruit."})).json()["answer"]

            async def cosine(a: str, b: str) -> float:
                return float((await http.get("/similarity", params={"a": a, "b": b})).json()["cosine"])

            assert await cosine("a cat", "a kitten") > await cosine("a cat", "a tax return") > -1


async def test_a_model_that_fits_no_node(redis_url: str, smollm2_path: Path, tmp_path: Path) -> None:
    with Fleet(redis_url, smollm2_path, tmp_path) as fleet:
        fleet.coordinator()
        for name, ram in zip("abc", RAM_MIB, strict=True):
            fleet.worker(name, ram)
        with Client(redis_url, app="tests") as client:
            await is_formable(client)
        environ = {**os.environ, "SOLLOL_REDIS_URL": redis_url, "SOLLOL_MODEL": "big"}
        said = _run(_example_path("big_model"), environ)
    assert "answered by " in said
    assert len(re.findall(r"layers, .* MiB on [abc]$", said, re.M)) == 3


def _example_path(name: str) -> Path:
    return _EXAMPLES / f"{name}.py"


def _environ(fabric: LocalFabric) -> dict[str, str]:
    return {**os.environ, "SOLLOL_REDIS_URL": fabric.url, "SOLLOL_GATEWAY_URL": fabric.gateway_url}


def _example(fabric: LocalFabric, name: str, *words: str) -> str:
    return _run(_example_path(name), _environ(fabric), *words)


def _run(path: Path, environ: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, path, *words], env=environ, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _serving(fabric: LocalFabric, words: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, *words], env={**_environ(fabric), "PORT": str(port)})
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


async def _up(http: httpx.AsyncClient, path: str) -> None:
    async def answers() -> bool:
        try:
            return (await http.get(path)).status_code < 500
        except httpx.TransportError:
            return False

    await wait_until(answers, timeout=60, what="the application to listen")
