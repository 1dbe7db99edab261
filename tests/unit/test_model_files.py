from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

import toy_models
from sollol_worker_agent import ollama_store
from sollol_worker_agent.model_files import ModelFiles

_DIGEST = "ab" * 32


def _store(root: Path, *parts: str, blob: bytes | Path = b"GGUF") -> Path:
    """An Ollama store with one model; gives its blob."""
    manifest = root.joinpath("manifests", *parts)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'cd' * 32}"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{_DIGEST}"},
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    path = root / "blobs" / f"sha256-{_DIGEST}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(blob.read_bytes() if isinstance(blob, Path) else blob)
    return path


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("registry.ollama.ai", "library", "llama3.1", "70b"), "llama3.1:70b"),
        (("registry.ollama.ai", "library", "llama3.1", "70b"), "Llama3.1:70B"),
        (("registry.ollama.ai", "library", "llama3", "latest"), "llama3"),
        (("ollama.com", "library", "llama3", "latest"), "llama3"),
        (("registry.ollama.ai", "me", "mine", "latest"), "me/mine"),
        (("hf.co", "org", "Repo-GGUF", "Q4_K_M"), "hf.co/org/Repo-GGUF:Q4_K_M"),
    ],
)
def test_finds_a_model_by_its_name_in_ollama(tmp_path: Path, parts: tuple[str, ...], name: str) -> None:
    blob = _store(tmp_path, *parts)

    assert ollama_store.resolve(name, [tmp_path / "none", tmp_path]) == blob


@pytest.mark.parametrize("name", ["llama3:8b", "other", "../../etc/passwd", "a/b/c/d/e", "", ":"])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    _store(tmp_path, "registry.ollama.ai", "library", "llama3", "latest")

    assert ollama_store.resolve(name, [tmp_path]) is None


def test_a_model_whose_blob_is_missing_is_not_there(tmp_path: Path) -> None:
    _store(tmp_path, "registry.ollama.ai", "library", "llama3", "latest").unlink()

    assert ollama_store.resolve("llama3", [tmp_path]) is None
    assert list(ollama_store.models([tmp_path])) == []


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"layers": [{"digest": 1}]}', '{"layers": 3}'])
def test_a_damaged_manifest_is_passed_over(tmp_path: Path, manifest: str) -> None:
    _store(tmp_path, "registry.ollama.ai", "library", "llama3", "latest")
    (tmp_path / "manifests/registry.ollama.ai/library/llama3/latest").write_text(manifest)

    assert list(ollama_store.models([tmp_path])) == []


def test_lists_what_ollama_would_show(tmp_path: Path) -> None:
    _store(tmp_path, "registry.ollama.ai", "library", "llama3.1", "70b")
    _store(tmp_path, "registry.ollama.ai", "me", "mine", "v2")

    assert {name for name, _ in ollama_store.models([tmp_path])} == {"llama3.1:70b", "me/mine:v2"}


def test_where_the_store_may_lie(tmp_path: Path) -> None:
    assert ollama_store.stores({"OLLAMA_MODELS": "/data/models"}) == [Path("/data/models")]
    assert ollama_store.stores({}, home=tmp_path)[0] == tmp_path / ".ollama/models"


def test_brings_all_places_together(tmp_path: Path) -> None:
    toy = toy_models.make_toy_chat(tmp_path / "dir" / "deeper" / "Toy.gguf")
    _store(tmp_path / "store", "registry.ollama.ai", "library", "big", "latest", blob=toy)
    (tmp_path / "dir" / "broken.gguf").write_bytes(b"GGUF")
    (tmp_path / "dir" / "has a space.gguf").write_bytes(toy.read_bytes())

    found = ModelFiles({"named:latest": toy}, [tmp_path / "dir"], [tmp_path / "store"]).look()

    assert set(found) == {"named", "toy", "big"}
    assert found["toy"].path == toy
    assert found["big"].facts == found["named"].facts


def test_a_model_in_several_files_counts_whole(tmp_path: Path) -> None:
    for part, layers in ((1, [0]), (2, [1, 2])):
        writer = gguf.GGUFWriter(tmp_path / f"big-{part:05}-of-00002.gguf", "llama")
        writer.add_block_count(3)
        writer.add_embedding_length(32)
        writer.add_head_count(4)
        for layer in layers:
            writer.add_tensor(f"blk.{layer}.attn_q.weight", np.zeros((32, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    found = ModelFiles(directories=[tmp_path], stores=()).look()

    assert list(found) == ["big"]
    assert found["big"].path.name == "big-00001-of-00002.gguf"
    assert found["big"].facts.layer_bytes == (4096, 4096, 4096)
