"""How each API writes an error. Pure but for random ids."""

from __future__ import annotations

import secrets
from typing import Any

from .refusals import Refusal

_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                 404: "not_found_error", 429: "rate_limit_error"}  # fmt: skip
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error"}


def error_body(path: str, refusal: Refusal) -> dict[str, Any]:
    """An error in the shape of the API that a path belongs to."""
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(refusal.status, "api_error")
        error = {"type": kind, "message": refusal.text}
        return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
    if path.startswith(("/v1/", "/v2/", "/rerank")):
        kind = _OPENAI_TYPES.get(refusal.status, "api_error")
        told = {"message": refusal.text, "type": kind, "param": refusal.field or None}
        return {"error": {**told, "code": refusal.code or None}}
    return {"error": refusal.text}
