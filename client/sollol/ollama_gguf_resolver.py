"""From a model's name in Ollama to its GGUF file on this machine; Ollama need not run."""

from __future__ import annotations

from pathlib import Path

from sollol_worker_agent import ollama_store


class OllamaGGUFResolver:
    """Looks into Ollama's store.

    Args:
        ollama_models_dir: the store; None = $OLLAMA_MODELS, else the usual places.
    """

    def __init__(self, ollama_models_dir: str | None = None) -> None:
        self._roots = [Path(ollama_models_dir)] if ollama_models_dir is not None else None

    def resolve(self, model_name: str) -> str | None:
        """The path of the model's file, such as that of "llama3.1:70b"; None = it is not here, or not whole."""
        found = ollama_store.resolve(model_name, self._roots)
        return str(found) if found is not None else None

    def list_available_models(self) -> dict[str, str]:
        """All models that are here: name → path."""
        return {name: str(path) for name, path in ollama_store.models(self._roots)}


def resolve_ollama_model(model_name: str) -> str | None:
    """`OllamaGGUFResolver().resolve(model_name)`."""
    return OllamaGGUFResolver().resolve(model_name)
