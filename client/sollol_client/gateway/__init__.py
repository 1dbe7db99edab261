"""The fabric over HTTP, for applications that know nothing of it: `sollol-gateway`. It holds no state."""

from .app import build
from .config import GatewayConfig
from .serving import Asked, Note, Running, Serving

__all__ = ["Asked", "GatewayConfig", "Note", "Running", "Serving", "build"]
