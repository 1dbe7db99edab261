from __future__ import annotations

from pathlib import Path

import gguf
import pytest

import toy_models
from sollol_worker_agent.gguf_facts import facts_of
from sollol_worker_agent.gguf_header import BadGguf, read_header


def test_sums_up_a_model_of_equal_layers(tmp_path: Path) -> None:
    path = toy_models.make_toy_chat(tmp_path / "toy.gguf", layers=3, embd=64)

    facts = facts_of(read_header(path))

    assert facts.layers == 3
    assert len(set(facts.layer_bytes)) == 1
    assert 0.8 * path.stat().st_size < facts.weight_bytes < path.stat().st_size
    assert (facts.embedding_length, facts.feed_forward_length, facts.heads) == (64, 128, 4)
    assert (facts.kv_heads, facts.key_length, facts.value_length) == ((2, 2, 2), 16, 16)
    assert facts.context_tokens == toy_models.CONTEXT_TOKENS
    assert facts.vocabulary == facts.input_bytes // (4 * 64)
    assert (facts.tied_bytes, facts.window) == (0, 0)


def test_reads_what_differs_from_layer_to_layer(tmp_path: Path) -> None:
    path = _written(tmp_path, "gemma3", kv_heads=[1, 2, 4], window=512, pattern=[True, False, True])

    facts = facts_of(read_header(path))

    assert facts.kv_heads == (1, 2, 4)
    assert (facts.window, facts.windowed) == (512, (True, False, True))
    assert facts.tied_bytes == 10 * 32 * 4


def test_knows_which_layers_look_back_without_limit(tmp_path: Path) -> None:
    known = facts_of(read_header(_written(tmp_path, "gemma2", kv_heads=[1, 1, 1], window=512)))
    unknown = facts_of(read_header(_written(tmp_path, "newkind", kv_heads=[1, 1, 1], window=512)))

    assert known.windowed == (True, False, True)
    assert unknown.windowed == (False, False, False)


def test_an_encoder_keeps_no_cache(tmp_path: Path) -> None:
    facts = facts_of(read_header(_written(tmp_path, "bert", kv_heads=[4, 4, 4])))

    assert facts.kv_heads == (0, 0, 0)


def test_a_file_without_layers_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "none.gguf", "llama")
    _close(writer)

    with pytest.raises(BadGguf, match="how many layers"):
        facts_of(read_header(tmp_path / "none.gguf"))


def _written(
    directory: Path,
    architecture: str,
    *,
    kv_heads: list[int],
    window: int = 0,
    pattern: list[bool] | None = None,
) -> Path:
    import numpy as np

    path = directory / f"{architecture}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(len(kv_heads))
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv_heads)
    if window:
        writer.add_sliding_window(window)
    if pattern:
        writer.add_sliding_window_pattern(pattern)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), dtype=np.float32))
    for layer in range(len(kv_heads)):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", np.zeros((32, 32), dtype=np.float32))
    _close(writer)
    return path


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
