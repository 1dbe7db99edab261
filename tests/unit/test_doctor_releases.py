"""Which releases have known holes."""

from __future__ import annotations

import pytest

from sollol.cli.doctor_releases import backend_holes, llama_build, safe_release, server_of


@pytest.mark.parametrize(
    ("fields", "kind", "text", "version"),
    [
        ({"redis_version": "7.4.6"}, "Redis", "7.4.6", (7, 4, 6)),
        (
            {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.4"},
            "Valkey",
            "8.1.4",
            (8, 1, 4),
        ),
        ({}, "Redis", "0", (0,)),
    ],
)
def test_server_of(fields: dict[str, str], kind: str, text: str, version: tuple[int, ...]) -> None:
    assert server_of(fields) == (kind, text, version)


@pytest.mark.parametrize(
    ("kind", "version", "safe"),
    [
        ("Redis", (7, 0, 15), "7.2.16"),
        ("Redis", (7, 2, 15), "7.2.16"),
        ("Redis", (7, 2, 16), ""),
        ("Redis", (7, 4, 10), "7.4.11"),
        ("Redis", (7, 4, 11), ""),
        ("Redis", (8, 0, 4), "8.2.9"),
        ("Redis", (8, 2, 9), ""),
        ("Redis", (8, 6, 3), "8.6.6"),
        ("Redis", (8, 8, 1), "8.8.2"),
        ("Redis", (8, 10, 1), ""),
        ("Redis", (9, 0), ""),
        ("Valkey", (7, 2, 12), "8.0.10"),
        ("Valkey", (8, 0, 9), "8.0.10"),
        ("Valkey", (8, 1, 8), "8.1.9"),
        ("Valkey", (8, 1, 9), ""),
        ("Valkey", (9, 0, 4), "9.0.5"),
        ("Valkey", (9, 1, 2), ""),
    ],
)
def test_safe_release(kind: str, version: tuple[int, ...], safe: str) -> None:
    assert safe_release(kind, version) == safe


@pytest.mark.parametrize(
    ("kind", "version", "better"),
    [
        ("ollama", "0.17.0", "Ollama 0.17.1"),
        ("ollama", "v0.9.6", "Ollama 0.17.1"),
        ("ollama", "0.17.1", ""),
        ("ollama", "0.33.0-rc1", ""),
        ("ollama", "", ""),
        ("llama-server", "b11392-3f1b2c4", "llama.cpp b11393"),
        ("llama-server", "b11393-3f1b2c4", ""),
        ("llama-server", "b1-571d0d5", ""),
        ("llama-server", "", ""),
        ("openai", "0.5.0", ""),
    ],
)
def test_backend_holes(kind: str, version: str, better: str) -> None:
    found = backend_holes(kind, version)
    assert found.startswith(better)
    assert bool(found) == bool(better)


@pytest.mark.parametrize(
    ("text", "build"), [("b10068-3f1b", 10068), ("9000", 9000), ("b1-571d0d5", 0), ("", 0)]
)
def test_llama_build(text: str, build: int) -> None:
    assert llama_build(text) == build
