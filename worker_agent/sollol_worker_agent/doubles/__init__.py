"""Servers that stand in for real LLM servers in tests, and can be told to fail."""

from sollol_worker_agent.doubles.ollama import OllamaDouble
from sollol_worker_agent.doubles.ollama_scheduler import DoubleModel

__all__ = ["DoubleModel", "OllamaDouble"]
