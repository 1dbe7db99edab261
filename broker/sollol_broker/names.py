"""Names that people choose, and the parts of Redis keys that we make of them."""

from __future__ import annotations

import hashlib
import re

from .errors import InvalidJob

_PLAIN = re.compile(r"[a-z0-9._-]{1,64}")
_UNPLAIN = re.compile(r"[^a-z0-9._-]+")
_DEFAULT_PREFIX = "registry.ollama.ai/library/"
MAX_NAME_CHARS = 200


def canonical_model(name: str) -> str:
    """The one spelling of a model's name, as Ollama compares them.

    Case does not matter, ":latest" and Ollama's default registry are left off:
    "Llama3.2:latest" and "llama3.2" are the same model.

    Raises:
        InvalidJob: the name is empty, too long, or has control characters or spaces.
    """
    checked = check_name(name, "model").lower()
    canonical = checked.removeprefix(_DEFAULT_PREFIX).removeprefix("library/").removesuffix(":latest")
    return check_name(canonical, "model")


def check_name(name: str, field: str) -> str:
    """Give `name` back if it can serve as a name.

    Raises:
        InvalidJob: not a string, empty, over 200 characters, or with spaces or control characters.
    """
    if not isinstance(name, str) or not name:
        raise InvalidJob(f"{field}: a name is needed, got {type(name).__name__}", field=field)
    if len(name) > MAX_NAME_CHARS:
        raise InvalidJob(f"{field}: {len(name)} characters, at most {MAX_NAME_CHARS}", field=field)
    if not name.isprintable() or " " in name:
        raise InvalidJob(f"{field}: spaces and control characters are not allowed in a name", field=field)
    return name


def key_part(name: str) -> str:
    """Turn a checked name into a part of a key: out of [a-z0-9._~-] alone, at most 64 characters.

    A plain name stays as it is; any other becomes a readable stem, "~" and 16 hex digits of its
    SHA-256, so that no name can reach another's key, nor leave the fabric's prefix.
    """
    if _PLAIN.fullmatch(name):
        return name
    stem = _UNPLAIN.sub("-", name.lower())[:40]
    return f"{stem}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
