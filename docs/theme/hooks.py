"""What the site does differently from the pages as they lie in the repository."""

from __future__ import annotations

import re
from typing import Any

import sollol

_DOCSTRING = re.compile(r"^### `(\w+)`\n(.*?)\[(?:Docstring|The tree)\]\(\.\./[^)]*\)", re.M | re.S)
_ELSEWHERE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links to sources at the reference, and name other files of the repository instead of linking them."""
    if page.file.src_uri == "reference.md":
        return markdown + "".join(f"\n::: {_path(name)}\n" for name in _documented())
    if page.file.src_uri == "api.md":
        markdown = _DOCSTRING.sub(_to_reference, markdown)
    return _ELSEWHERE.sub(r"\1 (`\2` in the repository)", markdown)


def _to_reference(found: re.Match[str]) -> str:
    name = found[1]
    link = f"[Docstring][{_path(name)}]" if name in _documented() else ""
    return f"### `{name}`\n{found[2]}{link}"


def _documented() -> list[str]:
    return [name for name in sollol.__all__ if hasattr(getattr(sollol, name), "__module__")]


def _path(name: str) -> str:
    thing = getattr(sollol, name)
    return f"{thing.__module__}.{thing.__qualname__}"
