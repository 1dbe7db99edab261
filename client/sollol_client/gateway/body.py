"""A request's body: read with a limit, and taken as JSON whatever its Content-Type says."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from .refusals import Refused


async def read_body(http: HttpRequest, most_bytes: int) -> bytes:
    """The whole body.

    Raises:
        Refused: 413, it is too large; no more of it is read.
    """
    told = http.headers.get("content-length", "")
    if told.isdigit() and int(told) > most_bytes:
        raise _too_large(most_bytes)
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size > most_bytes:
                raise _too_large(most_bytes)
            parts.append(part)
    except ClientDisconnect:
        raise Refused(499, "the client left before it had sent its request") from None
    return b"".join(parts)


def parsed(body: bytes) -> Any:
    """A body as JSON; errors in the words of Ollama.

    Raises:
        Refused: 400, it is none.
    """
    if not body.strip():
        raise Refused(400, "missing request body")
    try:
        return json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise Refused(400, "json: exceeded max depth") from None
    except json.JSONDecodeError as error:
        if error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg:
            raise Refused(400, "unexpected EOF") from None
        odd = json.dumps(error.doc[error.pos], ensure_ascii=False)[1:-1]
        raise Refused(400, f"invalid character '{odd}' at {error.pos}: {error.msg}") from None
    except ValueError:  # not UTF-8, or a number of thousands of digits
        raise Refused(400, "the body is no JSON in UTF-8") from None


def _no_number(name: str) -> None:
    raise Refused(400, f"invalid character '{name[0]}' looking for beginning of value")


def _too_large(most_bytes: int) -> Refused:
    return Refused(413, f"the request has more than {most_bytes:,} bytes: send less at once")
