"""`OllamaPool` and `HybridRouter` under the names that programs without asyncio have used: the same classes."""

from .hybrid_router import HybridRouter
from .pool import OllamaPool

__all__ = ["HybridRouter", "OllamaPool"]
