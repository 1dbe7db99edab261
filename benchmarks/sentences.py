"""Real sentences to embed, of every machine's Python: the docstrings of its standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SHORTEST, _LONGEST = 20, 400


def sentences(count: int) -> list[str]:
    """So many different ones, the same each time."""
    found: dict[str, None] = {}
    for sentence in _all():
        found[sentence] = None
        if len(found) == count:
            return list(found)
    raise ValueError(f"the standard library has only {len(found)} sentences")


def _all() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                yield from (each for each in _SENTENCE.split(text) if _SHORTEST <= len(each) <= _LONGEST)
