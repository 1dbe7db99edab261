"""The name `sollol`: what it offers, what the docs say it offers, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sollol
from sollol_broker import errors

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^#|\Z)", API, flags=re.MULTILINE | re.DOTALL))
HEAVY = ("click", "flask", "gguf", "httpx", "numpy", "psutil", "rich", "starlette")


def test_the_docs_list_exactly_what_is_public() -> None:
    assert sorted(SECTIONS) == sorted(sollol.__all__)


@pytest.mark.parametrize("name", sollol.__all__)
def test_each_section_has_a_line_and_leads_to_the_docstring(name: str) -> None:
    line, link = SECTIONS[name].strip().splitlines()
    assert line.endswith(".")
    target = re.fullmatch(r"\[Docstring\]\((.+)\)", link)
    assert target, link
    code = (ROOT / "docs" / target[1]).read_text("utf-8")
    assert f"class {name}" in code or f"def {name}" in code or name == "__version__"


@pytest.mark.parametrize("name", sollol.__all__)
def test_each_public_name_is_there(name: str) -> None:
    value = getattr(sollol, name)
    assert name == "__version__" or value.__name__ == name
    assert name in dir(sollol)


def test_the_whole_error_tree_is_public() -> None:
    tree = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert tree <= set(sollol.__all__)


def test_a_name_of_another_release_is_absent() -> None:
    assert not hasattr(sollol, "IntelligentRouter")


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import sollol", (*HEAVY, "redis", "pydantic", "asyncio")),
        ("import sollol; sollol.Client", HEAVY),
    ],
)
def test_what_is_not_needed_is_not_imported(code: str, forbidden: tuple[str, ...]) -> None:
    # redis-py loads OpenTelemetry, and with it a lot, wherever it is installed.
    script = f"import sys\nsys.modules['opentelemetry'] = None\n{code}\nprint(*(set({forbidden!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
