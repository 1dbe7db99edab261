"""Finds a model's GGUF file on this machine, by path or by its name in Ollama's store."""

from __future__ import annotations

from pathlib import Path

from sollol_broker.model_facts import ModelFacts
from sollol_worker_agent import ollama_store
from sollol_worker_agent.gguf_facts import facts_of
from sollol_worker_agent.gguf_header import BadGguf
from sollol_worker_agent.model_files import read_whole

from .errors import SetupError


def find_model_file(name: str) -> Path | None:
    """The file; None = it is neither a path that exists nor a model of Ollama's store."""
    path = Path(name).expanduser()
    return path if path.is_file() else ollama_store.resolve(name)


def read_facts(path: Path) -> ModelFacts:
    """What it says of the memory that it needs; of a model in several files, of all of them.

    Raises:
        SetupError: it cannot be read, or is no GGUF file.
    """
    try:
        return facts_of(read_whole(path))
    except (OSError, BadGguf) as error:
        raise SetupError(f"the model file cannot be used: {error}") from error
