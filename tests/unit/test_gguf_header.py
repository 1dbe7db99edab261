from __future__ import annotations

import struct
from pathlib import Path

import pytest

import toy_models
from sollol_worker_agent.gguf_header import BadGguf, read_header


def test_tells_what_a_chat_model_is(tmp_path: Path) -> None:
    path = toy_models.make_toy_chat(tmp_path / "toy.gguf", layers=2, embd=64)

    header = read_header(path)

    assert (header.architecture, header.name) == ("llama", "toy-chat")
    assert header.context_tokens == toy_models.CONTEXT_TOKENS
    assert header.embedding_length == 64
    assert header.metadata["llama.block_count"] == 2
    assert header.has_chat_template
    assert header.pooling is None
    assert not header.is_embedding
    assert header.size_bytes == path.stat().st_size


def test_counts_the_parameters(tmp_path: Path) -> None:
    path = toy_models.make_toy_chat(tmp_path / "toy.gguf", layers=1, embd=64)

    header = read_header(path)

    # f32: four bytes each, and the rest of the file is a header with a vocabulary.
    assert 0.8 * header.size_bytes < 4 * header.parameters < header.size_bytes


def test_tells_an_embedding_model_by_its_pooling(tmp_path: Path) -> None:
    header = read_header(toy_models.make_toy_embedding(tmp_path / "toy.gguf"))

    assert header.pooling == 1
    assert header.is_embedding


@pytest.mark.parametrize(
    ("architecture", "pooling", "is_embedding"),
    [
        ("llama", None, False),
        ("llama", 0, False),
        ("qwen3", 3, True),
        ("bert", None, True),
        ("nomic-bert", 1, True),
        ("bert", 4, False),  # a reranker
    ],
)
def test_what_counts_as_an_embedding_model(
    tmp_path: Path, architecture: str, pooling: int | None, is_embedding: bool
) -> None:
    entries = [_text("general.architecture", architecture)]
    if pooling is not None:
        entries.append(_string(f"{architecture}.pooling_type") + struct.pack("<II", 4, pooling))

    header = read_header(_file(tmp_path, entries))
    assert (header.is_embedding, header.is_reranker) == (is_embedding, pooling == 4)


def test_reads_every_scalar_type_and_steps_over_arrays(tmp_path: Path) -> None:
    numbers = {0: ("B", 7), 1: ("b", -7), 2: ("H", 7), 3: ("h", -7), 4: ("I", 7), 5: ("i", -7), 6: ("f", 0.5),
               7: ("?", True), 10: ("Q", 7), 11: ("q", -7), 12: ("d", 0.5)}  # fmt: skip
    entries = [
        _string("strings") + struct.pack("<IIQ", 9, 8, 2) + _string("a") + _string("b"),
        _string("floats") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
    ]
    entries += [
        _string(f"n{kind}") + struct.pack(f"<I{form}", kind, n) for kind, (form, n) in numbers.items()
    ]

    header = read_header(_file(tmp_path, entries))

    assert header.metadata == {f"n{kind}": number for kind, (_, number) in numbers.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 and so on", "is no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 0x1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 0x3000000"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "more entries than any model has"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQII", 3, 0, 1, 0, 99, 0), "unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 9, 1), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 8, 2**62), "a list of"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 99), "99 dimensions"),
    ],
)
def test_refuses_a_damaged_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)

    with pytest.raises(BadGguf, match=message) as caught:
        read_header(path)

    assert str(path) in str(caught.value)


def test_refuses_every_beginning_of_a_header(tmp_path: Path) -> None:
    path = _file(tmp_path, [_text("general.architecture", "llama"), _text("general.name", "toy")])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadGguf):
            read_header(path)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _text(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", 8) + _string(value)


def _file(directory: Path, entries: list[bytes]) -> Path:
    path = directory / "made.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return path
