"""`OllamaPool`: several Ollama servers behind the calls that SOLLOL has always had."""

from .pool import OllamaPool

__all__ = ["OllamaPool"]
