"""The blocks of code on the pages for readers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "examples" / "README.md",
    ]
)
_FENCE = re.compile(
    r"^(?P<mark> *<!-- not run: .+ -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
# Four blanks and a command: how these pages show short ones.
_INDENTED = re.compile(r"^    (?=\S)([^\n]+)$", re.M)


@dataclass(frozen=True, slots=True)
class Block:
    """Code on a page. `is_marked`: the page says in a comment why nothing can run it."""

    page: Path
    line: int
    language: str
    text: str
    is_marked: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced ones of a page."""
    text = page.read_text("utf-8")
    for found in _FENCE.finditer(text):
        yield Block(
            page,
            text.count("\n", 0, found.start("indent")) + 1,
            found["language"],
            textwrap.dedent(found["text"]),
            bool(found["mark"]),
        )


def shell_lines(page: Path) -> Iterator[tuple[int, str]]:
    """Every line that a reader may type into a shell, with its number."""
    text = page.read_text("utf-8")
    for block in blocks(page):
        if block.language in ("sh", "bash", "console") and not block.is_marked:
            joined = block.text.replace("\\\n", " ")
            for line in joined.splitlines():
                yield block.line, line
    for found in _INDENTED.finditer(_FENCE.sub("", text)):
        yield text.count("\n", 0, text.find(found[0])) + 1, found[1]
