"""The LLM servers that a worker can serve, behind one Protocol."""

from sollol_worker_agent.backends.discovery import connect, detect, find_local
from sollol_worker_agent.backends.echo import EchoBackend
from sollol_worker_agent.backends.llama_server import LlamaServerBackend
from sollol_worker_agent.backends.ollama import OllamaBackend
from sollol_worker_agent.backends.openai_compatible import OpenAIBackend
from sollol_worker_agent.backends.protocol import Backend, End, ModelInfo, Piece, Timeouts, Vectors

__all__ = [
    "Backend",
    "EchoBackend",
    "End",
    "LlamaServerBackend",
    "ModelInfo",
    "OllamaBackend",
    "OpenAIBackend",
    "Piece",
    "Timeouts",
    "Vectors",
    "connect",
    "detect",
    "find_local",
]
