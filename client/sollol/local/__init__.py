"""What a single machine brings along when it has no LLM server of its own: small real models."""

from .models import ALL_MINILM, SMOLLM2, LocalModelMissing, all_minilm, cache_directory, smollm2

__all__ = ["ALL_MINILM", "SMOLLM2", "LocalModelMissing", "all_minilm", "cache_directory", "smollm2"]
