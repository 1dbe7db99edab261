"""`OllamaPool` under the name that programs without asyncio have used; it is the same class."""

from .pool import OllamaPool

__all__ = ["OllamaPool"]
